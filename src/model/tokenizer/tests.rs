use super::*;

fn trained() -> Tokenizer {
    let texts = ["endoscopy gastrointestinal colon polyp", "endoscopy gastrointestinal colon normal", "x-ray chest"];
    Tokenizer::train(&texts, 540).unwrap()
}

fn reload(tokenizer: &Tokenizer, keep: &[&str]) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path(), 77).unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if !keep.iter().any(|name| path.ends_with(name)) {
            std::fs::remove_file(path).unwrap();
        }
    }
    Tokenizer::load(dir.path()).unwrap()
}

#[test]
fn byte_tokens_are_those_of_clip() {
    let tokenizer = Tokenizer::train::<&str>(&[], 514).unwrap();
    let id = |token: &str| tokenizer.vocabulary.tokens.iter().find(|(t, _)| t == token).map(|(_, id)| *id);
    // from the public vocabulary: "0" is 15, "!" 0, "!</w>" 256, the end token last
    assert_eq!([id("0"), id("!"), id("!</w>"), id("<|endoftext|>")], [Some(15), Some(0), Some(256), Some(513)]);
    assert_eq!(tokenizer.ids("a0 é", 77).unwrap(), [512, 256 + 64, 256 + 15, 127, 256 + 102, 513]);
}

#[test]
fn training_is_reproducible_and_merges_the_frequent() {
    let a = trained();
    let again = ["x-ray chest", "endoscopy gastrointestinal colon normal", "endoscopy gastrointestinal colon polyp"];
    assert_eq!(a.vocabulary, Tokenizer::train(&again, 540).unwrap().vocabulary);
    assert_eq!(a.vocab_size(), 540);
    assert_eq!(a.ids("Endoscopy  GASTROINTESTINAL\tcolon", 77).unwrap().len(), 5);
    assert!(Tokenizer::train(&again, 513).is_err());
    let all = Tokenizer::train(&again, 5000).unwrap();
    assert!(all.vocab_size() < 5000);
    assert_eq!(all.ids("x-ray chest normal", 77).unwrap().len(), 7);
}

#[test]
fn both_kinds_of_files_give_the_same_ids() {
    let tokenizer = trained();
    let text = "Colon polyp, 12 mm; naïve it's \u{212b}ngström 内視鏡 🙂";
    let expected = tokenizer.ids(text, 77).unwrap();
    assert_eq!(reload(&tokenizer, &["vocab.json", "merges.txt"]).ids(text, 77).unwrap(), expected);
    assert_eq!(reload(&tokenizer, &["tokenizer.json"]).ids(text, 77).unwrap(), expected);
}

#[test]
fn truncation_keeps_the_end_and_padding_is_masked() {
    let tokenizer = trained();
    let end = tokenizer.vocab_size() - 1;
    let (ids, mask) = tokenizer.encode(&["x", "many words that do not fit at all"], 5).unwrap();
    assert_eq!((ids.size(), mask.size()), (vec![2, 5], vec![2, 5]));
    let rows: Vec<Vec<i64>> = Vec::try_from(&ids).unwrap();
    let masks: Vec<Vec<i64>> = Vec::try_from(&mask).unwrap();
    assert_eq!(rows[0][2..], [end; 3]);
    assert_eq!(masks[0], [1, 1, 1, 0, 0]);
    assert_eq!((rows[1][0], rows[1][4]), (end - 1, end));
    assert!(rows[1][1..4].iter().all(|&id| id < end - 1));
    assert_eq!(masks[1], [1; 5]);
    assert!(tokenizer.encode(&["x"], 1).is_err());
    assert_eq!(tokenizer.encode::<&str>(&[], 5).unwrap().0.size(), [0, 5]);
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap_err().kind(), crate::ErrorKind::NotFound);
    trained().save(dir.path(), 77).unwrap();
    std::fs::write(dir.path().join("merges.txt"), "#version: 0.2\ne n\nend\n").unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("merges.txt' line 3"), "{error}");
    std::fs::write(dir.path().join("merges.txt"), "qqq zzz\n").unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap_err().kind(), crate::ErrorKind::Package);
    std::fs::write(dir.path().join("vocab.json"), r#"{"<|endoftext|>": 0, "<|startoftext|>": 1}"#).unwrap();
    std::fs::write(dir.path().join("merges.txt"), "").unwrap();
    assert!(Tokenizer::load(dir.path()).unwrap_err().to_string().contains("highest id"));
}
