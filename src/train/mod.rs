//! Loss, optimizer, schedule, the loop.

pub mod ema;
pub mod loss;
pub mod optimizer;
pub mod schedule;
