//! Loss, optimizer, schedule, the loop.

pub mod ema;
pub mod evaluation;
pub mod loader;
pub mod loss;
pub mod optimizer;
pub mod schedule;
pub mod trainer;
