//! Secrets that a library keeps and does not wipe.

use std::mem::ManuallyDrop;
use std::ops::Deref;

/// A value whose bytes are overwritten with zeros when it goes: key schedules of ring stay in memory otherwise. Copies
/// that moves have left on the stack are not reached, so it is put where it stays as soon as it is made.
pub(super) struct Wiped<T>(ManuallyDrop<Box<T>>);

impl<T> Wiped<T> {
    pub(super) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(Box::new(value)))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: the box is taken out once, here, and never seen again.
        let raw = Box::into_raw(unsafe { ManuallyDrop::take(&mut self.0) });
        // SAFETY: `raw` comes from a box and is aligned and valid for writes of a whole `T`. The value is dropped first, so
        // its bytes mean nothing when they are overwritten; `Box<MaybeUninit<T>>` frees the memory without looking at them.
        unsafe {
            raw.drop_in_place();
            zeroize::zeroize_flat_type(raw.cast::<std::mem::MaybeUninit<T>>());
            drop(Box::from_raw(raw.cast::<std::mem::MaybeUninit<T>>()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_dropped_once() {
        let counted = std::rc::Rc::new(());
        let wiped = Wiped::new(std::rc::Rc::clone(&counted));
        assert_eq!(std::rc::Rc::strong_count(&wiped), 2);
        drop(wiped);
        assert_eq!(std::rc::Rc::strong_count(&counted), 1);
    }
}
