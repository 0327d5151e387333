//! Whatever a container is called, as one label of a host name.

/// The longest label (RFC 1035, section 2.3.4).
const LONGEST: usize = 63;

/// Letters, digits and hyphens, none of these at either end (RFC 1123, section 2.1), in lower case; `_`, `.` and all else become
/// a hyphen. `None` when nothing is left.
pub fn label(name: &str) -> Option<String> {
    let sound = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String =
        name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).chars().take(LONGEST).map(sound).collect();
    let text = text.trim_end_matches('-');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::value;

    #[test]
    fn names_become_labels() {
        for (name, expected) in [
            ("nextcloud", Some("nextcloud")),
            ("Next_Cloud.1", Some("next-cloud-1")),
            ("-web-", Some("web")),
            ("café", Some("caf")),
            ("a b", Some("a-b")),
            ("", None),
            ("__", None),
            ("日本", None),
        ] {
            assert_eq!(label(name).as_deref(), expected, "{name:?}");
        }
        let long = format!("{}-{}", "a".repeat(62), "b".repeat(40));
        assert_eq!(label(&long), Some("a".repeat(62)), "no hyphen at the end that was cut");
    }

    proptest! {
        #[test]
        fn what_comes_out_is_a_label_and_stays(name: String) {
            if let Some(made) = label(&name) {
                prop_assert!(made == "direct" || made == "none" || value::name(&made).is_ok(), "{made}");
                prop_assert_eq!(label(&made), Some(made.clone()));
            }
        }
    }
}
