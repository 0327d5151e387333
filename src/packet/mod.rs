//! IP packets as bytes: views, checksums, segmentation, coalescing and the virtio-net header. Pure.
