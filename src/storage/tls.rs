//! The implementation of TLS that every HTTP client of this program uses.

/// Chooses ring as rustls's implementation; later calls change nothing. Call it before an HTTP client is made.
pub(crate) fn provide() {
    // an error says that one was chosen before
    drop(rustls::crypto::ring::default_provider().install_default());
}
