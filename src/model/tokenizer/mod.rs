//! The CLIP tokenizer: text to ids, read from a package or trained for a new model.
//!
//! Guarantees: whatever files it came from, text goes through one pipeline (NFC, white space collapsed, lower case, CLIP's
//! split, byte-level BPE with `</w>`), so any text encodes; the end token has the highest id, because the text encoder
//! pools at the first maximum; the files written load in Python's `tokenizers` and `transformers` and give the same ids.

mod train;

use crate::error::{Error, Result};
use crate::model::engine;
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::Tensor;

/// Text that starts every sequence.
const START: &str = "<|startoftext|>";
/// Text that ends every sequence, and pads it.
const END: &str = "<|endoftext|>";
/// Marks the last symbol of a word.
const WORD_END: &str = "</w>";
/// CLIP's split of text into words, after lower-casing.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokens in order of their ids, and the pairs to merge in order of rank.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Vocabulary {
    tokens: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
}

/// A CLIP tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    start: u32,
    end: u32,
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a tokenizer from a folder with `vocab.json` and `merges.txt`, or else `tokenizer.json`; or from a
    /// `tokenizer.json` given by its own path.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when there is neither, [`crate::ErrorKind::Package`] when a file is damaged or no
    /// CLIP vocabulary.
    pub fn load(path: &Path) -> Result<Tokenizer> {
        if path.is_file() {
            return Self::from_tokenizer_json(path);
        }
        let (vocab, merges) = (path.join("vocab.json"), path.join("merges.txt"));
        if !vocab.is_file() || !merges.is_file() {
            return Self::from_tokenizer_json(&path.join("tokenizer.json"));
        }
        let tokens = tokens_of(&read_json(&vocab)?, &vocab)?;
        let text = std::fs::read_to_string(&merges).map_err(|e| Error::io("read", &merges, e))?;
        let mut pairs = Vec::new();
        for (row, line) in text.lines().enumerate() {
            if line.is_empty() || (row == 0 && line.starts_with("#version")) {
                continue;
            }
            let pair = line.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '));
            let Some((a, b)) = pair else {
                let file = merges.display();
                return Err(Error::package(format!("'{file}' line {}: not two tokens with a space between", row + 1)));
            };
            pairs.push((a.to_owned(), b.to_owned()));
        }
        Self::assemble(Vocabulary { tokens, merges: pairs }).map_err(|e| e.context(format!("'{}'", path.display())))
    }

    fn from_tokenizer_json(path: &Path) -> Result<Tokenizer> {
        let file = read_json(path)?;
        let model = &file["model"];
        if model["end_of_word_suffix"] != WORD_END {
            let file = path.display();
            return Err(Error::package(format!("'{file}' is no CLIP tokenizer: its model has no '{WORD_END}' suffix")));
        }
        let tokens = tokens_of(&model["vocab"], path)?;
        let pair = |merge: &Value| match merge {
            Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Value::Array(list) => match list.as_slice() {
                [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        };
        let merges = model["merges"].as_array().and_then(|list| list.iter().map(pair).collect::<Option<Vec<_>>>());
        let Some(merges) = merges else {
            return Err(Error::package(format!("'{}': model.merges is not a list of token pairs", path.display())));
        };
        Self::assemble(Vocabulary { tokens, merges }).map_err(|e| e.context(format!("'{}'", path.display())))
    }

    /// Trains a tokenizer of at most `max_vocab` tokens on `texts`: CLIP's 512 byte tokens, the most frequent merges, then
    /// the start and end tokens. Depends on the texts and their counts only, not on their order.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] when `max_vocab` is below 514.
    pub fn train<S: AsRef<str>>(texts: &[S], max_vocab: usize) -> Result<Tokenizer> {
        Self::assemble(train::train(texts, max_vocab)?)
    }

    fn assemble(vocabulary: Vocabulary) -> Result<Tokenizer> {
        let id = |token: &str| {
            let found = vocabulary.tokens.iter().find(|(text, _)| text == token);
            found.map(|(_, id)| *id).ok_or_else(|| Error::package(format!("the vocabulary has no token '{token}'")))
        };
        let (start, end) = (id(START)?, id(END)?);
        if vocabulary.tokens.last().map(|(_, id)| *id) != Some(end) {
            let reason = "must have the highest id, since texts are pooled where the id is highest";
            return Err(Error::package(format!("the token '{END}' {reason}")));
        }
        let text = definition(&vocabulary, start, end).to_string();
        let inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|e| Error::package(format!("the vocabulary and merges do not fit together: {e}")))?;
        Ok(Tokenizer { vocabulary, start, end, inner })
    }

    /// Rows that a token embedding needs: the highest id plus one.
    #[must_use]
    pub fn vocab_size(&self) -> i64 {
        i64::from(self.end) + 1
    }

    /// Writes `vocab.json`, `merges.txt`, `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `dir`,
    /// which must exist. `context_length` goes into the configuration as the longest sequence.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Storage`] or [`crate::ErrorKind::NoSpace`].
    pub fn save(&self, dir: &Path, context_length: i64) -> Result<()> {
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
        };
        let merges: String = self.vocabulary.merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        write("vocab.json", vocab_json(&self.vocabulary).to_string())?;
        write("merges.txt", format!("#version: 0.2\n{merges}"))?;
        write("tokenizer.json", definition(&self.vocabulary, self.start, self.end).to_string())?;
        let token = |text: &str| json!({"content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true});
        let specials =
            json!({"bos_token": token(START), "eos_token": token(END), "unk_token": token(END), "pad_token": END});
        write("special_tokens_map.json", format!("{specials:#}\n"))?;
        let config = json!({
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": context_length,
            "do_lower_case": true,
            "add_prefix_space": false,
            "errors": "replace",
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        });
        write("tokenizer_config.json", format!("{config:#}\n"))
    }

    /// The ids of one text with start and end tokens, at most `context_length` of them: a longer text loses its last
    /// tokens, never the end token.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a context below 2, [`crate::ErrorKind::Internal`] when the tokenizer fails.
    pub fn ids(&self, text: &str, context_length: usize) -> Result<Vec<u32>> {
        let Some(room) = context_length.checked_sub(2) else {
            return Err(Error::config(format!("LANG_ENCODER.CONTEXT_LENGTH is {context_length}: give at least 2")));
        };
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::internal(format!("the tokenizer failed on a text: {e}")))?;
        let words = encoding.get_ids();
        let mut ids = Vec::with_capacity(words.len().min(room) + 2);
        ids.push(self.start);
        ids.extend_from_slice(&words[..words.len().min(room)]);
        ids.push(self.end);
        Ok(ids)
    }

    /// Ids and attention mask, both int64 `[n, context_length]` on the CPU, padded with the end token under mask 0.
    ///
    /// # Errors
    /// As [`Tokenizer::ids`]; [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn encode<S: AsRef<str>>(&self, texts: &[S], context_length: i64) -> Result<(Tensor, Tensor)> {
        let length = usize::try_from(context_length).unwrap_or(0);
        let mut ids = vec![i64::from(self.end); texts.len() * length];
        let mut mask = vec![0i64; texts.len() * length];
        for (row, text) in texts.iter().enumerate() {
            for (column, id) in self.ids(text.as_ref(), length)?.into_iter().enumerate() {
                ids[row * length + column] = i64::from(id);
                mask[row * length + column] = 1;
            }
        }
        let shape = [i64::try_from(texts.len()).unwrap_or(i64::MAX), context_length];
        let tensor = |values: &[i64]| Tensor::f_from_slice(values).and_then(|t| t.f_view(shape)).map_err(engine);
        Ok((tensor(&ids)?, tensor(&mask)?))
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::package(format!("'{}' is not valid JSON: {e}", path.display())))
}

/// The tokens of a `{"token": id}` object by id; ids must be distinct.
fn tokens_of(value: &Value, path: &Path) -> Result<Vec<(String, u32)>> {
    let wrong = |what: String| Error::package(format!("'{}': {what}", path.display()));
    let map = value.as_object().ok_or_else(|| wrong("the vocabulary is not an object of tokens and ids".to_owned()))?;
    let mut tokens = Vec::with_capacity(map.len());
    for (token, id) in map {
        // the text encoder holds a row for every id up to the highest, so an absurd one is refused here
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| id < 1 << 24);
        tokens.push((token.clone(), id.ok_or_else(|| wrong(format!("token '{token}' has no id from 0 to 2^24")))?));
    }
    tokens.sort_by_key(|(_, id)| *id);
    match tokens.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        None => Ok(tokens),
        Some(pair) => Err(wrong(format!("tokens '{}' and '{}' have the same id", pair[0].0, pair[1].0))),
    }
}

fn vocab_json(vocabulary: &Vocabulary) -> Value {
    let map: Map<String, Value> = vocabulary.tokens.iter().map(|(token, id)| (token.clone(), json!(id))).collect();
    Value::Object(map)
}

/// The content of `tokenizer.json`: CLIP's pipeline around a vocabulary.
fn definition(vocabulary: &Vocabulary, start: u32, end: u32) -> Value {
    let added = |content: &str, id: u32| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": true, "special": true})
    };
    // merges as "a b" texts, which old and new versions of the Python package read
    let merges: Vec<String> = vocabulary.merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(START, start), added(END, end)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                  "end_of_word_suffix": WORD_END, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab_json(vocabulary), "merges": merges},
    })
}

#[cfg(test)]
mod tests;
