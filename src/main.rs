//! The `medtune` program.

fn main() {}
