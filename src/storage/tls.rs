//! Which implementation of TLS every client in this process uses.

use std::sync::Once;

/// Makes ring the provider of rustls, once for the process. To be called before any HTTP client is made: none of them
/// brings a provider along.
pub(crate) fn provide() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // only fails when somebody else has chosen one already, and then that one serves
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
