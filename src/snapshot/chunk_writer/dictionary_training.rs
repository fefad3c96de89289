//! Trains the dictionary that small chunks are compressed with.
//!
//! A store without a dictionary trains one once [`TRAINING_BYTES`] of small chunks are waiting, or from fewer at the end of a run. A dictionary that gains
//! too little is dropped. Memory: one copy of the samples, at most [`TRAINING_BYTES`], and what zstd's trainer needs.

use std::sync::Arc;

use crate::ids::DictionaryId;
use crate::store::codec::{Compressor, DICTIONARY_CHUNK_MAX_BYTES, Dictionary, DictionarySet};

/// Training uses at most this many bytes of samples. Its time grows with them; the gain hardly does.
pub(super) const TRAINING_BYTES: usize = 4 << 20;
/// Fewer samples than this do not make a dictionary.
const TRAINING_MIN_SAMPLES: usize = 64;
/// The samples must hold this many times the bytes of the dictionary; otherwise the dictionary is made smaller.
const TRAINING_RATIO: usize = 8;
/// Largest size of a dictionary in bytes. Measured on generated mail up to 32 KiB: 30.1% of the plain size with 32 KiB, 28.9% with 64, 28.0% with 112, and
/// 40.4% without any.
const DICTIONARY_MAX_BYTES: usize = 112 << 10;
/// A dictionary smaller than this, in bytes, is not worth storing.
const DICTIONARY_MIN_BYTES: usize = 4 << 10;
/// One sample in this many is held out of the training, to judge its result.
const HELD_OUT: usize = 10;
/// A dictionary must save at least one byte in this many of the held-out samples.
const TRAINING_GAIN_DIVISOR: usize = 33;

/// Trains a dictionary from small chunks of all parts of the data, and gives it the next free id. Chunks longer than [`DICTIONARY_CHUNK_MAX_BYTES`] are
/// ignored.
///
/// Returns `None` if there are too few samples, or if the dictionary does not make the held-out samples at least three per cent smaller at zstd level `level`.
pub(super) fn train(samples: &[&[u8]], known: &DictionarySet, level: i32) -> Option<Arc<Dictionary>> {
    let fitting = |sample: &&[u8]| !sample.is_empty() && sample.len() <= DICTIONARY_CHUNK_MAX_BYTES;
    let fitting: Vec<&[u8]> = samples.iter().copied().filter(fitting).collect();
    let total: usize = fitting.iter().map(|sample| sample.len()).sum();
    // Every n-th sample, so that all parts of the data are represented.
    let step = total.div_ceil(TRAINING_BYTES).max(1);
    let chosen: Vec<&[u8]> = fitting.into_iter().step_by(step).collect();
    if chosen.len() < TRAINING_MIN_SAMPLES {
        return None;
    }
    let (mut joined, mut lengths, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
    for (number, sample) in chosen.into_iter().enumerate() {
        if number % HELD_OUT == HELD_OUT / 2 {
            held_out.push(sample);
        } else {
            joined.extend_from_slice(sample);
            lengths.push(sample.len());
        }
    }
    let size = DICTIONARY_MAX_BYTES.min(joined.len() / TRAINING_RATIO);
    if size < DICTIONARY_MIN_BYTES {
        return None;
    }
    let id = known.all().last().map_or(Some(DictionaryId::FIRST), |last| last.id().next())?;
    // zstd refuses samples without any repetition: then there is no dictionary.
    let bytes = zstd::dict::from_continuous(&joined, &lengths, size).ok()?;
    let dictionary = Arc::new(Dictionary::new(id, bytes));
    let without = stored_bytes(level, None, &held_out)?;
    let with = stored_bytes(level, Some(&dictionary), &held_out)?;
    (with + without / TRAINING_GAIN_DIVISOR < without).then_some(dictionary)
}

/// Returns how many bytes the samples take when stored.
fn stored_bytes(level: i32, dictionary: Option<&Arc<Dictionary>>, samples: &[&[u8]]) -> Option<usize> {
    let mut compressor = Compressor::new(level, dictionary.cloned()).ok()?;
    samples.iter().map(|sample| Some(compressor.compress(sample).ok()?.bytes.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// A message with the headers that all have, and a body that none shares.
    fn mail(seed: u64) -> Vec<u8> {
        let headers = format!(
            "Return-Path: <user{}@example.com>\r\nReceived: from mta.example.com by mailbox.example.com\r\n\
             Message-ID: <{seed}@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n",
            seed % 50
        );
        [headers.as_bytes(), &noise(seed, 600)].concat()
    }

    #[test]
    fn training_needs_enough_samples_and_a_gain() {
        let train = |samples: &[Vec<u8>], known: &DictionarySet| {
            super::train(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>(), known, 3)
        };
        let known = DictionarySet::new();
        let mails: Vec<Vec<u8>> = (0..600).map(mail).collect();
        let dictionary = train(&mails, &known).expect("messages have headers in common");
        assert_eq!(dictionary.id(), DictionaryId::FIRST);
        assert!((DICTIONARY_MIN_BYTES / 2..=DICTIONARY_MAX_BYTES).contains(&dictionary.bytes().len()));
        assert!(train(&mails[..50], &known).is_none(), "too few");
        let noises: Vec<Vec<u8>> = (0..600).map(|seed| noise(seed, 1500)).collect();
        assert!(train(&noises, &known).is_none(), "no gain");
        assert!(train(&[], &known).is_none());
        known.insert(dictionary).unwrap();
        assert_eq!(train(&mails, &known).map(|next| next.id()), DictionaryId::FIRST.next());
    }
}
