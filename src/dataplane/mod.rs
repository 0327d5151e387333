//! The forwarding loop: TUN device, UDP socket and the threads between them.
