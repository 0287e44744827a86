//! What several processes that train together do beside computing: they begin with the same, compare what they have, and
//! stop at the same step.

use super::checkpoint::State;
use super::evaluation::Accuracies;
use super::optimizer::AdamW;
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::model::engine_text;
use medtune_native::Reducer;
use std::collections::HashSet;
use tch::Tensor;

/// How far losses and norms may differ, relative to them: processors of different kinds round differently.
const CLOSE: f64 = 1e-3;

/// Gives every process the first one's state, and its content of all these tensors.
///
/// # Errors
/// [`crate::ErrorKind::Peer`], or the error that another process ended with.
pub(super) fn share(world: &World, state: &State, tensors: &[Tensor]) -> Result<State> {
    // some may still be fetching what others have already
    world.meet()?;
    let unreadable = |e| Error::internal("a training's state").with_source(e);
    let text = world.from_first(|| serde_json::to_vec(state).map_err(unreadable))?;
    world.broadcast(tensors)?;
    world.verify_equal(tensors)?;
    serde_json::from_slice(&text).map_err(unreadable)
}

/// What adds up the gradients of several processes: of all that is trained but the logit scale, see passes.rs.
///
/// # Errors
/// As [`share`].
pub(super) fn reducer<'w>(
    world: &'w World,
    params: &[(String, Tensor)],
    optimizer: &AdamW,
    bucket_bytes: usize,
) -> Result<Option<Reducer<'w>>> {
    let Some(processes) = world.processes() else { return Ok(None) };
    let trained: HashSet<&String> = optimizer.groups().iter().flat_map(|g| &g.names).collect();
    let params = params.iter().filter(|(name, _)| trained.contains(name) && name != "logit_scale");
    let params: Vec<Tensor> = params.map(|(_, t)| t.shallow_clone()).collect();
    if params.is_empty() {
        return Ok(None);
    }
    Reducer::new(processes, params, bucket_bytes).map(Some).map_err(|text| world.blame(engine_text(&text)))
}

/// The first process's accuracies: those of the others may differ by a rounding error.
///
/// # Errors
/// As [`share`].
pub(super) fn one_answer(world: &World, own: Accuracies) -> Result<Accuracies> {
    let unreadable = |e| Error::internal("accuracies").with_source(e);
    if world.size() == 1 {
        return Ok(own);
    }
    let text = world.from_first(|| serde_json::to_vec(&own).map_err(unreadable))?;
    serde_json::from_slice(&text).map_err(unreadable)
}

/// Compares the loss and the gradient's norm of a step; gives the norm that all clip by, and why all are to stop, if they are.
///
/// # Errors
/// [`crate::ErrorKind::Peer`] naming a rank that computes something else; those of [`share`].
pub(super) fn agree(
    world: &World,
    step: u64,
    (loss, norm): (f64, f64),
    signal: Option<&'static str>,
) -> Result<(f64, Option<String>)> {
    let all = world.numbers(&[loss, norm, f64::from(u8::from(signal.is_some()))])?;
    if let Some(rank) = different(&all) {
        let (first, other) = (&all[0], &all[rank]);
        return Err(Error::peer(format!(
            "step {step}: rank {rank} has a loss of {} and a gradient of {}, rank 0 has {} and {}: it computes something else",
            other[0], other[1], first[0], first[1]
        )));
    }
    let asked = all.iter().position(|n| n[2] > 0.0);
    Ok((all[0][1], asked.map(|rank| world.stop_reason(rank, signal))))
}

/// The first rank whose loss or norm is not that of rank 0.
fn different(all: &[Vec<f64>]) -> Option<usize> {
    let close = |a: f64, b: f64| {
        if a.is_finite() && b.is_finite() {
            (a - b).abs() <= CLOSE * b.abs().max(1e-6)
        } else {
            a.is_finite() == b.is_finite()
        }
    };
    let first = all.first()?;
    all.iter().position(|n| !(close(n[0], first[0]) && close(n[1], first[1])))
}

/// Checks that all processes have the same bits.
///
/// # Errors
/// [`crate::ErrorKind::Peer`] naming a rank that has others.
pub(super) fn same_weights(world: &World, params: &[(String, Tensor)]) -> Result<()> {
    let weights: Vec<Tensor> = params.iter().map(|(_, t)| t.shallow_clone()).collect();
    let sha256 = world.verify_equal(&weights)?;
    tracing::info!(%sha256, "all processes have the same weights");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::different;

    #[test]
    fn who_computes_something_else_is_found() {
        let same = vec![0.5, 1e-8, 0.0];
        assert_eq!(different(&[same.clone(), vec![0.5000001, 1.1e-8, 1.0]]), None);
        assert_eq!(different(&[same.clone(), same.clone(), vec![0.6, 1e-8, 0.0]]), Some(2));
        assert_eq!(different(&[same.clone(), vec![0.5, 2.0, 0.0]]), Some(1));
        // the same overflow everywhere is no difference
        let overflow = vec![0.5, f64::INFINITY, 0.0];
        assert_eq!(different(&[overflow.clone(), vec![0.5, f64::NAN, 0.0]]), None);
        assert_eq!(different(&[overflow, same]), Some(1));
    }
}
