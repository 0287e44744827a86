//! Training of a byte-level BPE vocabulary in CLIP's form.
//!
//! Our own few lines rather than the library's trainer, because that one numbers symbols in the order of a randomly seeded
//! hash map: the same texts would give another vocabulary in every run. Here equal counts go to the lower pair of ids.

use super::{END, START, Tokenizer, Vocabulary, WORD_END};
use crate::error::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

type Pair = (u32, u32);

/// Bytes, bytes at the end of a word, start and end token.
const SMALLEST: usize = 2 * 256 + 2;

pub(super) fn train<S: AsRef<str>>(texts: &[S], max_vocab: usize) -> Result<Vocabulary> {
    if !(SMALLEST..1 << 24).contains(&max_vocab) {
        let range = format!("from {SMALLEST} (the bytes and two special tokens) to 2^24 - 1");
        return Err(Error::config(format!("a vocabulary of {max_vocab} tokens: give a number {range}")));
    }
    let mut tokens = byte_tokens();
    let bytes = Tokenizer::assemble(finish(tokens.clone(), Vec::new()))?;
    let mut state = State::new(words(&bytes, texts)?);
    let mut known: HashMap<String, u32> = (0u32..).zip(&tokens).map(|(id, token)| (token.clone(), id)).collect();
    let mut merges = Vec::new();
    while tokens.len() + 2 < max_vocab {
        let Some(pair) = state.most_frequent() else { break };
        let (a, b) = (tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone());
        let text = format!("{a}{b}");
        // two ways to the same text are two merges of one token
        let next = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let id = *known.entry(text.clone()).or_insert(next);
        if id == next {
            tokens.push(text);
        }
        merges.push((a, b));
        state.merge(pair, id);
    }
    Ok(finish(tokens, merges))
}

fn finish(mut tokens: Vec<String>, merges: Vec<(String, String)>) -> Vocabulary {
    tokens.extend([START.to_owned(), END.to_owned()]);
    Vocabulary { tokens: tokens.into_iter().zip(0..).collect(), merges }
}

/// CLIP's first 512 tokens: a printable character for every byte, those that are printable themselves first; then the
/// same at the end of a word.
fn byte_tokens() -> Vec<String> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..256u32).filter(|byte| !printable(byte)).count();
    let own = (0..256u32).filter(printable);
    let shifted = 256..256 + u32::try_from(others).unwrap_or(0);
    let plain: Vec<String> = own.chain(shifted).filter_map(char::from_u32).map(String::from).collect();
    plain.iter().cloned().chain(plain.iter().map(|token| format!("{token}{WORD_END}"))).collect()
}

/// The distinct words of the texts as byte tokens, with their counts, in a fixed order.
fn words<S: AsRef<str>>(bytes: &Tokenizer, texts: &[S]) -> Result<Vec<(Vec<u32>, u64)>> {
    let mut counts: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
    for text in texts {
        let ids = bytes.ids(text.as_ref(), usize::MAX)?;
        let mut word = Vec::new();
        for &id in &ids {
            match id {
                0..256 => word.push(id),
                256..512 => {
                    word.push(id);
                    *counts.entry(std::mem::take(&mut word)).or_default() += 1;
                }
                _ => word.clear(),
            }
        }
    }
    Ok(counts.into_iter().collect())
}

/// Words as symbols, how often each adjacent pair occurs, and where.
struct State {
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    places: HashMap<Pair, HashSet<usize>>,
    // holds outdated counts too; `most_frequent` corrects them when they surface
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl State {
    fn new(words: Vec<(Vec<u32>, u64)>) -> State {
        let mut state = State { words, counts: HashMap::new(), places: HashMap::new(), heap: BinaryHeap::new() };
        for index in 0..state.words.len() {
            state.add(index);
        }
        state.heap = state.counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
        state
    }

    fn pairs(&self, index: usize) -> Vec<Pair> {
        self.words[index].0.windows(2).map(|w| (w[0], w[1])).collect()
    }

    fn add(&mut self, index: usize) {
        for pair in self.pairs(index) {
            *self.counts.entry(pair).or_default() += self.words[index].1;
            self.places.entry(pair).or_default().insert(index);
        }
    }

    fn remove(&mut self, index: usize) {
        for pair in self.pairs(index) {
            if let Some(count) = self.counts.get_mut(&pair) {
                *count -= self.words[index].1;
            }
        }
    }

    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            let now = self.counts.get(&pair).copied().unwrap_or(0);
            if now == count && count > 0 {
                return Some(pair);
            }
            if now > 0 && now < count {
                self.heap.push((now, Reverse(pair)));
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair, id: u32) {
        let mut touched = HashSet::new();
        for index in self.places.remove(&pair).unwrap_or_default() {
            self.remove(index);
            let word = &mut self.words[index].0;
            let mut merged = Vec::with_capacity(word.len());
            let mut rest = word.as_slice();
            while let Some((&first, tail)) = rest.split_first() {
                let hit = first == pair.0 && tail.first() == Some(&pair.1);
                merged.push(if hit { id } else { first });
                rest = if hit { &tail[1..] } else { tail };
            }
            *word = merged;
            self.add(index);
            touched.extend(self.pairs(index));
        }
        self.heap.extend(touched.into_iter().map(|pair| (self.counts[&pair], Reverse(pair))));
    }
}
