//! Losses and gradients that are not finite: which rows they came from, and whether the training goes on.

use super::passes::Compared;
use super::watch::Watch;
use crate::config::parameters::OnNonFinite;
use crate::data::ImageTextPairs;
use crate::error::{Error, Result};
use serde_json::json;

/// The file beside the series of the run that names the rows.
pub const FILE: &str = "non-finite.jsonl";
/// So many steps in a row are left out before a training that skips them ends all the same.
const MOST_IN_A_ROW: u32 = 10;

/// Watches over the numbers of a training.
#[derive(Debug)]
pub(super) struct NonFinite {
    action: OnNonFinite,
    in_a_row: u32,
    lines: String,
}

impl NonFinite {
    pub(super) fn new(action: OnNonFinite) -> NonFinite {
        NonFinite { action, in_a_row: 0, lines: String::new() }
    }

    /// A step was as it should be.
    pub(super) fn good(&mut self) {
        self.in_a_row = 0;
    }

    /// The step (its number and the norm of its gradients) cannot be used: writes down its rows' keys, a line for each loss.
    pub(super) fn bad(
        &mut self,
        watch: &Watch,
        pairs: &ImageTextPairs,
        (step, norm): (u64, f64),
        compared: &[Compared],
    ) -> Result<()> {
        for pass in compared {
            let keys = pass.rows.iter().map(|&row| pairs.key(row).map(str::to_owned)).collect::<Result<Vec<_>>>()?;
            let number = |n: f64| if n.is_finite() { json!(n) } else { json!(n.to_string()) };
            let line = json!({ "step": step, "loss": number(pass.loss), "grad_norm": number(norm), "keys": keys });
            self.lines.push_str(&format!("{line}\n"));
        }
        watch.note(FILE, self.lines.clone().into_bytes());
        self.in_a_row += 1;
        let loss: f64 = compared.iter().map(|c| c.loss).sum();
        let what = format!("the loss is {loss} and the gradient's norm {norm} at step {step}");
        if self.action == OnNonFinite::Skip && self.in_a_row < MOST_IN_A_ROW {
            tracing::warn!("{what}: the step is left out; the keys of its rows are in {FILE} in the run's folder");
            return Ok(());
        }
        let (many, leave_out) = match self.action {
            OnNonFinite::Skip => (format!(", {} steps in a row", self.in_a_row), ""),
            OnNonFinite::Stop => (String::new(), ", leave such steps out (parameters.on_non_finite: skip)"),
        };
        Err(Error::config(format!(
            "{what}{many}: lower START_LEARNING_RATE, raise warmup_steps{leave_out} or set GRAD_CLIPPING; the keys of the rows are in \
             {FILE} in the run's folder"
        )))
    }
}
