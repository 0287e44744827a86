//! The arithmetic on the published sizes.

use super::cost::tests::published;
use super::*;
use crate::config::training::parse;

fn config(yaml: &str) -> TrainingConfig {
    parse(&serde_yaml_ng::from_str(yaml).unwrap(), "t.yaml").unwrap().config
}

const FROZEN: &str = "CUSTOMIZED_PARAMS_CONF: {FREEZE_PATTERNS: ['^lang_encoder\\.', '^convs\\.']}";

fn shape<'a>(config: &'a TrainingConfig, sizes: &'a ModelConfig, half: bool) -> Shape<'a> {
    Shape { config, sizes, half, twice: false, texts: (4, 15) }
}

#[test]
fn frozen_parameters_are_counted_and_patterns_that_match_nothing_are_named() {
    let sizes = published();
    let (all, none) = trained(&sizes, &config("TASK: UniCLTask")).unwrap();
    let whole = all.count(&sizes);
    assert_eq!((whole.trainable, whole.frozen), (whole.total, 0));
    assert!(none.is_empty() && (whole.total as f64 / 1e6 - 616.0).abs() < 0.1, "{whole:?}");
    let (some, unmatched) = trained(&sizes, &config(FROZEN)).unwrap();
    let part = some.count(&sizes);
    assert_eq!(part.trainable + part.frozen, whole.total);
    let text: i64 = expected(&sizes)
        .iter()
        .filter(|(n, ..)| n.starts_with("lang_encoder."))
        .map(|(_, s, _)| s.iter().product::<i64>())
        .sum();
    assert_eq!(part.frozen, text as usize);
    assert!(unmatched.len() == 1 && unmatched[0].contains("^convs"), "{unmatched:?}");
}

#[test]
fn steps_are_those_of_the_trainer() {
    let found = steps(
        &config("TRAIN: {BATCH_SIZE_TOTAL: 48, BATCH_SIZE_PER_GPU: 4}\nMAX_NUM_EPOCHS: 15\nEVAL_PER_OPTIM_STEPS: 100"),
        1000,
        300,
    );
    assert_eq!((found.optimizer_steps, found.passes_a_step, found.rows_a_step), (15 * 20, 12, 48));
    // at the start, after 100 and 200 steps, at the end
    assert_eq!(found.evaluations, 4);
}

#[test]
fn memory_of_the_published_model_is_that_of_its_parts() {
    let (sizes, plain) = (published(), config("TRAIN: {BATCH_SIZE_TOTAL: 2, BATCH_SIZE_PER_GPU: 2}"));
    let (all, _) = trained(&sizes, &plain).unwrap();
    let found = memory(&shape(&plain, &sizes, false), &all);
    assert_eq!(found.weights, found.gradients);
    assert_eq!((found.moments, found.average, found.casts), (2 * found.weights, 0, 0));
    // what was measured at this size and batch: 14.4 GB, of which 9.9 are parameters, gradients and moments
    let fixed = (found.weights + found.gradients + found.moments) as f64 / 1e9;
    assert!((fixed - 9.86).abs() < 0.05, "{fixed}");
    assert!((found.total as f64 / 14.4e9 - 1.0).abs() < 0.25, "{found:?}");
    let again = config(
        "IMAGE_ENCODER: {SPEC: {ENABLE_CHECKPOINT: true}}\nTRAIN: {BATCH_SIZE_TOTAL: 2}\nWEIGHT_SMOOTHING: {decay: 0.9}",
    );
    let less = memory(&shape(&again, &sizes, true), &all);
    assert!(less.activations < found.activations / 2 && less.average == found.weights, "{less:?}");
    // measured with activations computed again: 12.9 GB, without an average
    let again = TrainingConfig { smoothing: None, ..again };
    let measured = memory(&shape(&again, &sizes, false), &all).total as f64;
    assert!((measured / 12.9e9 - 1.0).abs() < 0.25, "{measured}");
}

#[test]
fn a_step_costs_three_forward_passes_and_more_when_something_is_computed_again() {
    let sizes = published();
    let base = "TRAIN: {BATCH_SIZE_TOTAL: 4, BATCH_SIZE_PER_GPU: 2}";
    let plain = config(base);
    let (all, _) = trained(&sizes, &plain).unwrap();
    let once = flop_a_step(&shape(&plain, &sizes, false), &all);
    let sum = |layers: Vec<Layer>| layers.iter().map(|l| l.flop).sum::<f64>();
    let forward = 4.0 * sum(image_layers(&sizes)) + 8.0 * sum(text_layers(&sizes, 15));
    assert!((once / forward - 3.0).abs() < 1e-9, "{once} {forward}");
    let twice = flop_a_step(&Shape { twice: true, ..shape(&plain, &sizes, false) }, &all);
    assert!((twice / forward - 4.0).abs() < 1e-9);
    let (some, _) = trained(&sizes, &config(FROZEN)).unwrap();
    let frozen = flop_a_step(&shape(&plain, &sizes, false), &some);
    assert!(frozen < once && frozen > 0.9 * once, "{frozen} {once}");
}

#[test]
fn the_measured_rate_is_a_rate() {
    let rate = speed::measure(Device::Cpu, false).unwrap();
    assert!((1e9..1e14).contains(&rate), "{rate}");
}
