//! What becomes of every key of a training configuration: honoured, accepted at its neutral value, or refused with a reason.

/// What a key does here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// It sets something.
    Honoured,
    /// It must have one of these values (as YAML text); anything else is refused with the note.
    Only(&'static [&'static str]),
    /// Any value: it has no effect on the result here. With a note, its reader is told so.
    NoEffect,
    /// It must say what the base model package says, where that says anything.
    Model,
}

use Rule::{Honoured, Model, NoEffect, Only};

const EMPTY: Rule = Only(&["", "null", "[]"]);

/// Key patterns (`*` ends a section name), the rule, and why another value is refused, or why it has no effect where
/// somebody could expect one. The first match counts.
pub(super) const RULES: &[(&str, Rule, &str)] = &[
    ("TASK", Only(&["UniCLTask"]), "UniCL is the one task of this program"),
    ("NAME", NoEffect, ""),
    ("SAVE_DIR", EMPTY, "the job's output save_dir takes its place"),
    ("SAVE_TIMER_LOG", NoEffect, ""),
    ("LOG_EVERY", Honoured, ""),
    ("LOGLEVEL_OVERRIDE", NoEffect, ""),
    ("LOG_GPU_MEM", NoEffect, ""),
    ("VERBOSE", NoEffect, ""),
    ("user_dir", NoEffect, "no code is loaded from folders"),
    ("PIN_MEMORY", NoEffect, ""),
    ("WORKERS", NoEffect, ""),
    ("SET_SAMPLER_EPOCH", NoEffect, "with TRAIN.SHUFFLE every epoch has an order of its own"),
    ("RESUME", Honoured, ""),
    ("RESET_DATA_LOADER", Only(&["false"]), "a resumed run goes on with the row after the last one"),
    ("SAVE_PER_OPTIM_STEPS", Honoured, ""),
    ("FP16", Honoured, ""),
    ("AMP", Only(&["PYTORCH", "", "null"]), "there is no apex here"),
    ("ZERO_STAGE", Only(&["0"]), "there is no DeepSpeed here"),
    ("DEEPSPEED", Only(&["false"]), "there is no DeepSpeed here"),
    ("USE_APEX_DDP", Only(&["false"]), "there is no apex here"),
    ("USE_APEX_AMP", Only(&["false"]), "there is no apex here"),
    ("USE_HIT", Only(&["false"]), "there is no HIT here"),
    ("FIND_UNUSED_PARAMETERS", Only(&["false"]), "every parameter of this model is used"),
    ("NO_AUTO_LR_SCALING", Only(&["true"]), "learning rates are taken as they are written"),
    ("DONT_LOAD_MODEL", NoEffect, "the base package is always loaded"),
    ("GRAD_CLIPPING", Honoured, ""),
    ("GRADIENT_ACCUMULATE_STEP", NoEffect, "it follows from the two batch sizes"),
    ("EVAL_AT_START", Honoured, ""),
    ("EVAL_PER_OPTIM_STEPS", Honoured, ""),
    ("EVAL_STRATEGY.EVAL_LAST_MODEL", Only(&["true"]), "the last model is always evaluated"),
    ("IMAGE_ENCODER.LOAD_PRETRAINED", NoEffect, ""),
    ("IMAGE_ENCODER.PRETRAINED", EMPTY, "weights come from mlflow_model_path"),
    ("IMAGE_ENCODER.PRETRAINED_LAYERS", Only(&["*"]), "all weights of the base package are loaded"),
    ("IMAGE_ENCODER.SPEC.DROP_PATH_RATE", Honoured, ""),
    ("IMAGE_ENCODER.SPEC.DROP_RATE", NoEffect, "the published model code does not use it"),
    ("IMAGE_ENCODER.SPEC.ENABLE_CHECKPOINT", Honoured, ""),
    ("IMAGE_ENCODER.*", Model, ""),
    ("LANG_ENCODER.LOAD_PRETRAINED", NoEffect, ""),
    ("LANG_ENCODER.PRETRAINED", EMPTY, "weights come from mlflow_model_path"),
    ("LANG_ENCODER.PRETRAINED_LAYERS", Only(&["*"]), "all weights of the base package are loaded"),
    ("LANG_ENCODER.*", Model, ""),
    ("UNICL_MODEL.GATHER_TENSORS", NoEffect, ""),
    ("UNICL_MODEL.LOAD_PRETRAINED", Only(&["true"]), "fine-tuning starts from the base package"),
    ("UNICL_MODEL.PRETRAINED", EMPTY, "weights come from mlflow_model_path"),
    ("UNICL_MODEL.PRETRAINED_LAYERS", Only(&["*"]), "all weights of the base package are loaded"),
    ("UNICL_MODEL.*", Model, ""),
    ("AUG.SCALE", Honoured, ""),
    ("AUG.RATIO", Honoured, ""),
    ("AUG.INTERPOLATION", Only(&["bicubic"]), "images are resized bicubically, as in serving"),
    ("AUG.MIXUP_PROB", Honoured, ""),
    ("AUG.MIXUP", Honoured, ""),
    ("AUG.MIXCUT", Honoured, ""),
    ("AUG.MIXCUT_MINMAX", Honoured, ""),
    ("AUG.MIXUP_SWITCH_PROB", Honoured, ""),
    ("AUG.MIXUP_MODE", Only(&["batch"]), "a whole batch is mixed with one share"),
    (
        "AUG.TORCHVISION_AUG.AUTO_AUGMENT",
        Only(&["ta_wide", "", "null", "none"]),
        "TrivialAugmentWide is the one automatic augmentation",
    ),
    ("AUG.TORCHVISION_AUG.RE_PROB", Honoured, ""),
    ("AUG.TORCHVISION_AUG.HFLIP", Honoured, ""),
    ("AUG.TORCHVISION_AUG.VFLIP", Honoured, ""),
    ("LOSS.LOSS", Only(&["UniCL"]), "UniCL is the one loss of this program"),
    ("DATASET.DATASET", Only(&["image_text_pairs_v2"]), "image and text TSVs are the one training format"),
    ("DATASET.TEXT_FORMAT", Only(&["json"]), "text TSVs hold JSON"),
    ("DATASET.DATA_FORMAT", Only(&["tsv"]), "image and text TSVs are the one training format"),
    ("DATASET.ROOT", EMPTY, "the job's inputs take its place"),
    ("DATASET.TRAIN_TSV_LIST", EMPTY, "the job's inputs take its place"),
    ("DATASET.TRAIN_SET", NoEffect, "the job's inputs say which rows"),
    ("DATASET.SAMPLER", Only(&["default"]), "there is one sampler"),
    ("DATASET.LOADER", Only(&["default"]), "there is one loader"),
    ("DATASET.TOKEN_FILE", EMPTY, "credentials come from the environment"),
    ("EVALDATASET_*.TEXT_FORMAT", Only(&["json"]), "text TSVs hold JSON"),
    ("EVALDATASET_*.FORMAT", Only(&["tsv", "zip"]), "the evaluation set is the job's eval_image_tsv and eval_text_tsv"),
    ("EVALDATASET_*.SPLIT", NoEffect, "the job's inputs say which rows"),
    ("EVALDATASET_*.EVAL_IMAGE_TSV", EMPTY, "the job's inputs take its place"),
    ("EVALDATASET_*.EVAL_TEXT_TSV", EMPTY, "the job's inputs take its place"),
    ("EVALDATASET_*.IMAGE_TSV", EMPTY, "the job's inputs take its place"),
    ("EVALDATASET_*.TEXT_TSV", EMPTY, "the job's inputs take its place"),
    ("EVALDATASET_*.LABEL_FILE", EMPTY, "the job's inputs take its place"),
    (
        "EVALDATASET_*.ZIP_FILE",
        EMPTY,
        "the job's inputs take its place; medtune reads TSVs, which Prepare makes of images",
    ),
    ("EVALDATASET_*.ZIP_MAP_FILE", EMPTY, "the job's inputs take its place"),
    ("EVALDATASET_*.CWEIGHT_FILE", EMPTY, "every class counts the same in this program's accuracy"),
    ("EVALDATASET_*.ZS_WEIGHT", Only(&["1", "1.0"]), "zero-shot scores are taken as they are, not mixed with others"),
    ("EVALDATASET_*.CLASSIFICATION_SETS", EMPTY, "the job's inputs take its place"),
    ("EVALDATASET_*.NUM_CLASSES", EMPTY, "the label file says how many classes there are"),
    ("EVALDATASET_*.ZS_MODE", Only(&["0", "2"]), "evaluation is zero-shot by label text (2) or kNN (0)"),
    ("EVALDATASET_*.KNN", Honoured, ""),
    ("EVALDATASET_*.TRACK_METRIC", Only(&["acc"]), "accuracy is what evaluation in training tracks"),
    ("ZEROSHOT_EVAL_DATASET.FORMAT", Only(&["tsv", "zip"]), "the evaluation set is the job's eval_image_tsv"),
    ("ZEROSHOT_EVAL_DATASET.SPLIT", NoEffect, "the job's inputs say which rows"),
    ("ZEROSHOT_EVAL_DATASET.ZIP_FILE", EMPTY, "the job's inputs take its place"),
    ("ZEROSHOT_EVAL_DATASET.ZIP_MAP_FILE", EMPTY, "the job's inputs take its place"),
    ("ZEROSHOT_EVAL_DATASET.IMAGE_TSV", EMPTY, "the job's inputs take its place"),
    ("ZEROSHOT_EVAL_DATASET.TEXT_TSV", EMPTY, "the job's inputs take its place"),
    ("ZEROSHOT_EVAL_DATASET.LABEL_FILE", EMPTY, "the job's inputs take its place"),
    ("EVALUATION_SPLITS", NoEffect, "evaluation is of the job's validation rows"),
    ("TEST.BATCH_SIZE_PER_GPU", Honoured, ""),
    ("TEST.MODEL_FILE", EMPTY, "the weights under training are evaluated"),
    ("TEST.CENTER_CROP", Only(&["false"]), "evaluation uses the pixels of serving"),
    ("TRAIN.BATCH_SIZE_TOTAL", Honoured, ""),
    ("TRAIN.BATCH_SIZE_PER_GPU", Honoured, ""),
    ("TRAIN.SHUFFLE", Honoured, ""),
    ("WEIGHT_SMOOTHING.decay", Honoured, ""),
    ("WEIGHT_SMOOTHING.use_cpu", Only(&["false"]), "the average is kept beside the weights"),
    ("WEIGHT_SMOOTHING.eval_smoothed_weight", Honoured, ""),
    ("START_LEARNING_RATE", Honoured, ""),
    ("MAX_NUM_EPOCHS", Honoured, ""),
    ("OPTIMIZER", Only(&["AdamW"]), "AdamW is the one optimizer"),
    ("OPTIMIZER_PARAMS.weight_decay", Honoured, ""),
    ("OPTIMIZER_PARAMS.betas", Honoured, ""),
    ("OPTIMIZER_PARAMS.eps", Honoured, ""),
    ("CUSTOMIZED_PARAMS_CONF.NO_WEIGHT_DECAY_MODULES", Honoured, ""),
    ("CUSTOMIZED_PARAMS_CONF.WEIGHT_DECAY_PATTERNS", Honoured, ""),
    ("CUSTOMIZED_PARAMS_CONF.LR_SCALE_PATTERNS", Honoured, ""),
    ("CUSTOMIZED_PARAMS_CONF.FREEZE_PATTERNS", Honoured, ""),
    ("LR_SCHEDULER", Only(&["TimmScheduler"]), "timm's cosine schedule is the one schedule"),
    ("LR_SCHEDULER_PARAMS.sched", Only(&["cosine"]), "timm's cosine schedule is the one schedule"),
    ("LR_SCHEDULER_PARAMS.warmup_steps", Honoured, ""),
    ("LR_SCHEDULER_PARAMS.warmup_lr", Honoured, ""),
    ("LR_SCHEDULER_PARAMS.min_lr", Honoured, ""),
    ("LR_SCHEDULER_PARAMS.epochs", NoEffect, "the cosine spans all steps of MAX_NUM_EPOCHS"),
    ("LR_SCHEDULER_PARAMS.steps_update_per_epoch", NoEffect, "the schedule moves at every optimizer step"),
];

/// The rule of a key, or `None` when the key is not known.
pub(super) fn rule_of(path: &str) -> Option<(Rule, &'static str)> {
    RULES.iter().find(|(pattern, ..)| matches(pattern, path)).map(|(_, rule, note)| (*rule, *note))
}

/// `EVALDATASET_*.X` matches that key in any section of the prefix; `IMAGE_ENCODER.*` every key below.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((prefix, "")) => path.starts_with(prefix),
        Some((prefix, rest)) => path
            .strip_prefix(prefix)
            .and_then(|p| p.split_once('.'))
            .is_some_and(|(_, key)| Some(key) == rest.strip_prefix('.')),
    }
}
