//! Loss, optimizer, schedule, the loop.

pub mod checkpoint;
pub mod ema;
pub mod evaluation;
pub mod loader;
pub mod loss;
pub mod non_finite;
pub mod optimizer;
mod passes;
pub mod precision;
pub mod schedule;
mod together;
pub mod trainer;
pub mod watch;
