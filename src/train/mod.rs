//! Loss, optimizer, schedule, the loop.
