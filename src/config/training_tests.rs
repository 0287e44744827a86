//! What becomes of single keys.

use super::*;

fn parsed(yaml: &str) -> Result<Parsed> {
    parse(&serde_yaml_ng::from_str(yaml).unwrap(), "t.yaml")
}

#[test]
fn honoured_keys_arrive() {
    let yaml = "START_LEARNING_RATE: 1e-3\nTRAIN: {BATCH_SIZE_TOTAL: 50, BATCH_SIZE_PER_GPU: 16}\nWEIGHT_SMOOTHING: {decay: 0.99}\nEVALDATASET_A: {ZS_MODE: 2}\nCUSTOMIZED_PARAMS_CONF: {WEIGHT_DECAY_PATTERNS: {\"\\\\.bias$\": 0.0}}";
    let Parsed { config, warnings, .. } = parsed(yaml).unwrap();
    assert_eq!((config.learning_rate, config.batch_total, config.batch_size), (1e-3, 50, 16));
    assert_eq!(config.smoothing, Some(Smoothing { decay: 0.99, evaluate: true }));
    assert_eq!((config.eval_zero_shot, config.eval_knn), (true, None));
    assert_eq!(config.weight_decay_patterns, vec![("\\.bias$".to_owned(), 0.0)]);
    assert!(config.resume && !config.fp16 && config.save_every == 0 && config.mixup.is_none());
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_step_takes_whole_parts_of_all_processes() {
    let yaml = |total: usize, size: usize| {
        parsed(&format!("TRAIN: {{BATCH_SIZE_TOTAL: {total}, BATCH_SIZE_PER_GPU: {size}}}")).unwrap().config
    };
    for ((total, size), processes, expected) in [
        ((48, 16), 1, (48, 16, 3, None)),
        ((50, 16), 1, (48, 16, 3, Some("takes 48"))),
        ((48, 8), 2, (48, 8, 3, None)),
        // without a size of its own, each process takes its part
        ((48, 48), 4, (48, 12, 1, None)),
        ((24, 20), 2, (24, 12, 1, Some("takes 12"))),
        ((50, 16), 3, (48, 16, 1, Some("takes 48"))),
    ] {
        let (config, told) = yaml(total, size).shared_by(processes).unwrap();
        let found = (config.batch_total, config.batch_size, config.micro_batches());
        assert_eq!(found, (expected.0, expected.1, expected.2), "{total} {size} {processes}");
        match expected.3 {
            None => assert_eq!(told, None),
            Some(part) => assert!(told.clone().unwrap().contains(part), "{told:?}"),
        }
    }
    assert!(yaml(4, 2).shared_by(5).unwrap_err().to_string().contains("TRAIN.BATCH_SIZE_TOTAL"));
}

#[test]
fn refusals_name_the_key_and_the_reason() {
    for (yaml, part) in [
        ("START_LERNING_RATE: 1", "did you mean 'START_LEARNING_RATE'?"),
        ("ZERO_STAGE: 1", "ZERO_STAGE: 1 is not supported"),
        ("AUG: {TORCHVISION_AUG: {AUTO_AUGMENT: imagenet}}", "AUTO_AUGMENT: imagenet is not supported"),
        ("AUG: {MIXUP_PROB: 0.5, MIXUP: 0, MIXCUT: 0}", "AUG.MIXUP_PROB"),
        ("DATASET: {ROOT: /x}", "DATASET.ROOT"),
        ("CUSTOMIZED_PARAMS_CONF: {FREEZE_PATTERNS: ['(']}", "not a regular expression"),
        ("MAX_NUM_EPOCHS: 0", "MAX_NUM_EPOCHS"),
        ("{}", "holds no keys"),
    ] {
        let error = parsed(yaml).unwrap_err().to_string();
        assert!(error.contains(part), "{yaml}: {error}");
    }
}

#[test]
fn model_keys_are_compared_with_the_base() {
    let keys = parsed("LANG_ENCODER: {WIDTH: 64}").unwrap().model_keys;
    let base = |w: u32| serde_yaml_ng::from_str(&format!("LANG_ENCODER: {{WIDTH: {w}}}")).unwrap();
    assert!(check_model_keys(&keys, &base(64), "t").is_ok());
    assert!(check_model_keys(&keys, &base(32), "t").unwrap_err().to_string().contains("LANG_ENCODER.WIDTH"));
}

#[test]
fn keys_without_effect_are_named_in_one_warning() {
    let yaml = "NAME: x\nVERBOSE: true\nIMAGE_ENCODER: {SPEC: {DROP_RATE: 0.1}}\nuser_dir: ./Code\nDATASET: {TRAIN_SET: mimic}\nMAX_NUM_EPOCHS: 2\nLR_SCHEDULER_PARAMS: {epochs: 30}";
    let warnings = parsed(yaml).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for key in ["IMAGE_ENCODER.SPEC.DROP_RATE", "user_dir", "DATASET.TRAIN_SET", "LR_SCHEDULER_PARAMS.epochs"] {
        assert!(warnings[0].contains(key), "{key}: {warnings:?}");
    }
    assert!(!warnings[0].contains("NAME") && !warnings[0].contains("VERBOSE"), "{warnings:?}");
    let neutral = "user_dir: ''\nDATASET: {TRAIN_SET: full}\nMAX_NUM_EPOCHS: 30\nLR_SCHEDULER_PARAMS: {epochs: 30}";
    assert!(parsed(neutral).unwrap().warnings.is_empty());
}

#[test]
fn evaluation_sections_of_other_formats_ask_for_their_kind_of_evaluation() {
    let section = |more: &str| format!("EVALDATASET_X: {{FORMAT: zip, ZS_MODE: 2, KNN: 100, ZIP_FILE: ''{more}}}");
    let found = parsed(&section("")).unwrap();
    assert_eq!((found.config.eval_zero_shot, found.config.eval_knn), (true, Some(100)));
    assert!(found.warnings[0].contains("EVALDATASET_X.FORMAT: zip"), "{:?}", found.warnings);
    for (more, part) in
        [(", ZIP_MAP_FILE: a.map", "EVALDATASET_X.ZIP_MAP_FILE"), (", ZS_WEIGHT: 0.5", "ZS_WEIGHT: 0.5")]
    {
        assert!(parsed(&section(more)).unwrap_err().to_string().contains(part), "{more}");
    }
    let only = parsed("ZEROSHOT_EVAL_DATASET: {FORMAT: zip, LABEL_FILE: ''}").unwrap().config;
    assert_eq!((only.eval_zero_shot, only.eval_knn), (true, None));
}

#[test]
fn lists_that_differ_are_named_on_one_line() {
    let keys = parsed("IMAGE_ENCODER: {IMAGE_SIZE: [480, 480], IMAGE_STD: [1, 1, 1]}").unwrap().model_keys;
    let base = serde_yaml_ng::from_str("IMAGE_ENCODER: {IMAGE_SIZE: [36, 44], IMAGE_STD: [1.0, 1.0, 1.0]}").unwrap();
    let error = check_model_keys(&keys, &base, "t").unwrap_err().to_string();
    assert!(error.contains("IMAGE_SIZE: [480, 480] differs") && error.contains("has [36, 44];"), "{error}");
    assert!(check_model_keys(&keys[1..], &base, "t").is_ok(), "1 is 1.0");
}
