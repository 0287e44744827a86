//! Rows that several processes go through in batches: in each round every process takes one batch.

use super::World;
use crate::error::{Error, Result};
use std::ops::Range;
use tch::Tensor;

/// The batches of so many rows; the last one may be smaller. Their number does not depend on the processes.
#[must_use]
pub fn batches(rows: usize, batch: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(batch).map(|start| start..(start + batch).min(rows)).collect()
}

/// What the processes have made of the batches of a round, by batch: `[rows, width]` values each, row-major. `own` is this process's,
/// empty when the round has no batch for it; `batch` is the size of a full one.
///
/// # Errors
/// As [`World::gather`].
pub fn gather_round(
    world: &World,
    mut own: Vec<f32>,
    round: &[Range<usize>],
    (batch, width): (usize, usize),
) -> Result<Vec<Vec<f32>>> {
    if world.size() == 1 {
        return Ok(vec![own]);
    }
    // all send the same length, whatever the last batch has
    own.resize(batch * width, 0.0);
    let all = world.gather(&Tensor::from_slice(&own))?;
    let all = all
        .f_view([-1])
        .and_then(Vec::<f32>::try_from)
        .map_err(|e| Error::engine("cannot read a tensor").with_source(e))?;
    let parts = all.chunks(batch * width).zip(round);
    Ok(parts.map(|(values, rows)| values[..rows.len() * width].to_vec()).collect())
}
