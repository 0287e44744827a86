//! Runs and model versions at an MLflow tracking server, over its REST API.
//!
//! Guarantees:
//! - **Nothing is lost with the server.** What is registered has been published in the store before; [`register`] reads it
//!   there, and can be repeated.
//! - **Twice is once.** A run is found again by its tag `medtune.run_id`, a model version by its tags `medtune.reference` and
//!   `medtune.digest`; only two processes that register the same at the same moment may make two of it.
//! - **Secrets stay secret.** Tokens and passwords are sent and nowhere else: no message, log line or record holds one.
//! - **Retries are bounded:** connections that fail and answers that may pass are tried again a few times; refusals never.
//!
//! Works with servers of MLflow 2 and 3.

mod artifacts;
mod client;
mod facts;
mod flatten;
mod register;

pub use client::Client;
pub use facts::RunFacts;
pub use register::{Request, register};
