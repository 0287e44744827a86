//! Several processes that compute one job: how they are started, find and watch one another. What they compute together is
//! c10d's work, torch's own library for it.

mod launch;
mod membership;
mod post;
pub mod rounds;
mod ticker;
mod watchdog;
mod world;

pub use launch::{Ended, LOG, PARENT, follow_parent, supervise};
pub use membership::Membership;
pub use world::World;
