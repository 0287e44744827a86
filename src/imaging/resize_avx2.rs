//! The two passes of [`super::resize`] in 256-bit registers: the same sums of integers, so the same bytes.
//!
//! A weight has up to 24 bits and the instruction that multiplies and adds pairs takes 16, so a weight is the sum of two: its high part
//! times 2^11, and its low 11 bits. Sums of both wrap as i32 does, and what they are put together to is the sum of the whole weights.

use std::arch::x86_64::*;
use std::ops::Range;

use super::resize::{BLOCK, HALF, Kernel, PRECISION_BITS, View};

const LOW_BITS: i32 = 11;
/// Pixels of a row that are read at a time.
const TAPS: usize = 4;
/// Rows that are resized at a time.
const ROWS: usize = 4;

/// Two neighbouring weights, each split in two: `[first, second]` as 16 bits each.
#[derive(Clone, Copy)]
struct Pair {
    high: i32,
    low: i32,
}

impl Pair {
    fn new(first: i32, second: i32) -> Pair {
        let pack = |first: i32, second: i32| (first & 0xffff) | (second << 16);
        let mask = (1 << LOW_BITS) - 1;
        Pair { high: pack(first >> LOW_BITS, second >> LOW_BITS), low: pack(first & mask, second & mask) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn broadcast(self) -> (__m256i, __m256i) {
        (_mm256_set1_epi32(self.high), _mm256_set1_epi32(self.low))
    }
}

/// Sums of the products with the high and with the low parts of weights.
#[derive(Clone, Copy)]
struct Sums {
    high: __m256i,
    low: __m256i,
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Sums {
        Sums { high: _mm256_setzero_si256(), low: _mm256_setzero_si256() }
    }

    /// Adds pairs of values, 16 bits each, times a pair of weights.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, values: __m256i, (high, low): (__m256i, __m256i)) {
        self.high = _mm256_add_epi32(self.high, _mm256_madd_epi16(values, high));
        self.low = _mm256_add_epi32(self.low, _mm256_madd_epi16(values, low));
    }

    /// The sums rounded to whole values, 32 bits each.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rounded(self) -> __m256i {
        let sum = _mm256_add_epi32(_mm256_slli_epi32::<LOW_BITS>(self.high), self.low);
        _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)))
    }
}

/// The horizontal pass over the rows `needed`.
#[target_feature(enable = "avx2")]
pub(super) fn resize_rows(view: &View<'_>, needed: Range<usize>, kernel: &Kernel) -> Vec<u8> {
    let pass = Horizontal::new(kernel);
    let (width, length) = (kernel.len() * 3, pass.line_bytes());
    let mut output = vec![0; needed.len() * width];
    // a whole group as it lies in the image, as long as no row of it is read behind the image's end
    let mut groups = output.chunks_exact_mut(ROWS * width);
    let mut y = needed.start;
    while let Some(rows) = view.pixels.get(y * view.stride..(y + ROWS - 1) * view.stride + length) {
        let Some(group) = groups.next() else { break };
        pass.run((rows, view.stride), group);
        y += ROWS;
    }
    // the rest in copies
    let done = (y - needed.start) * width;
    let (mut copies, mut group) = (vec![0; ROWS * length], vec![0; ROWS * width]);
    for output in output[done..].chunks_mut(ROWS * width) {
        for copy in copies.chunks_exact_mut(length).take(output.len() / width) {
            let row = view.row(y);
            let readable = length.min(row.len());
            copy[..readable].copy_from_slice(&row[..readable]);
            y += 1;
        }
        pass.run((&copies, length), &mut group);
        output.copy_from_slice(&group[..output.len()]);
    }
    output
}

/// Resizes [`ROWS`] rows at a time.
struct Horizontal {
    /// First input of each output, in pixels.
    starts: Vec<usize>,
    /// The weights of each output, two pairs for [`TAPS`] pixels.
    weights: Vec<[Pair; 2]>,
    /// Elements of `weights` for each output.
    steps: usize,
}

impl Horizontal {
    fn new(kernel: &Kernel) -> Horizontal {
        let steps = kernel.most_inputs().div_ceil(TAPS);
        let mut weights = Vec::with_capacity(kernel.len() * steps);
        for (_, of_output) in kernel.outputs() {
            let weight = |tap: usize| of_output.get(tap).copied().unwrap_or(0);
            let step = |tap| [Pair::new(weight(tap), weight(tap + 1)), Pair::new(weight(tap + 2), weight(tap + 3))];
            weights.extend((0..steps).map(|n| step(n * TAPS)));
        }
        Horizontal { starts: kernel.outputs().map(|(first, _)| first).collect(), weights, steps }
    }

    /// Bytes that are read from the first input of an output on; weights of what is not its input are 0.
    fn span(&self) -> usize {
        // 16 bytes are read for 4 pixels
        self.steps * TAPS * 3 + 4
    }

    /// Bytes that a line must have so that no output reads behind it.
    fn line_bytes(&self) -> usize {
        self.starts.iter().max().map_or(0, |start| start * 3 + self.span())
    }

    /// Resizes a group of rows, which begin `stride` bytes from each other and have [`Horizontal::line_bytes`] bytes each. `output` has
    /// three bytes for each output of each row.
    #[target_feature(enable = "avx2")]
    fn run(&self, (rows, stride): (&[u8], usize), output: &mut [u8]) {
        const SKIP: i8 = -1;
        #[rustfmt::skip]
        let first = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, SKIP, 3, SKIP, 1, SKIP, 4, SKIP, 2, SKIP, 5, SKIP, SKIP, SKIP, SKIP, SKIP,
        ));
        #[rustfmt::skip]
        let second = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            6, SKIP, 9, SKIP, 7, SKIP, 10, SKIP, 8, SKIP, 11, SKIP, SKIP, SKIP, SKIP, SKIP,
        ));
        let (above, below) = output.split_at_mut(self.starts.len() * 6);
        let (row_0, row_1) = above.split_at_mut(self.starts.len() * 3);
        let (row_2, row_3) = below.split_at_mut(self.starts.len() * 3);
        for (at, (&start, weights)) in self.starts.iter().zip(self.weights.chunks_exact(self.steps)).enumerate() {
            let inputs = |row: usize| rows[row * stride + start * 3..][..self.span()].as_ptr();
            let (a, b, c, d) = (inputs(0), inputs(1), inputs(2), inputs(3));
            let (mut upper, mut lower) = (Sums::zero(), Sums::zero());
            for (step, pairs) in weights.iter().enumerate() {
                let offset = step * TAPS * 3;
                let (left, right) = (pairs[0].broadcast(), pairs[1].broadcast());
                // SAFETY: `step` is below `steps`, so 16 bytes from the offset on are within the span
                let (two, other_two) =
                    unsafe { (load_two(a.add(offset), b.add(offset)), load_two(c.add(offset), d.add(offset))) };
                upper.add(_mm256_shuffle_epi8(two, first), left);
                upper.add(_mm256_shuffle_epi8(two, second), right);
                lower.add(_mm256_shuffle_epi8(other_two, first), left);
                lower.add(_mm256_shuffle_epi8(other_two, second), right);
            }
            // rows 0 and 2 in the lower half, 1 and 3 in the upper one, a pixel of four values each
            let values = _mm256_packs_epi32(upper.rounded(), lower.rounded());
            let bytes = _mm256_packus_epi16(values, values);
            put(row_0, at, _mm256_extract_epi32::<0>(bytes));
            put(row_1, at, _mm256_extract_epi32::<4>(bytes));
            put(row_2, at, _mm256_extract_epi32::<1>(bytes));
            put(row_3, at, _mm256_extract_epi32::<5>(bytes));
        }
    }
}

/// Writes pixel `at` of a row: a fourth byte too where the next pixel comes over it.
#[inline]
fn put(row: &mut [u8], at: usize, pixel: i32) {
    let pixel = pixel.to_le_bytes();
    let rest = &mut row[at * 3..];
    match rest.first_chunk_mut() {
        Some(bytes) => *bytes = pixel,
        None => rest.copy_from_slice(&pixel[..3]),
    }
}

/// 16 bytes from each of two rows.
///
/// # Safety
/// Both must have them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_two(upper: *const u8, lower: *const u8) -> __m256i {
    // SAFETY: the caller's
    unsafe { _mm256_loadu2_m128i(lower.cast(), upper.cast()) }
}

/// The vertical pass over `pixels` with rows of `stride` bytes, at least [`BLOCK`], of which the first is input row `first`.
#[target_feature(enable = "avx2")]
pub(super) fn resize_columns(pixels: &[u8], stride: usize, first: usize, kernel: &Kernel) -> Vec<u8> {
    assert!(stride >= BLOCK, "a row has fewer bytes than a block");
    let mut output = vec![0; stride * kernel.len()];
    let mut pairs = Vec::new();
    for ((start, weights), row) in kernel.outputs().zip(output.chunks_exact_mut(stride)) {
        let inputs = &pixels[(start - first) * stride..][..weights.len() * stride];
        pairs.clear();
        pairs.extend(weights.chunks(2).map(|pair| Pair::new(pair[0], pair.get(1).copied().unwrap_or(0))));
        // the last block ends with the row, and may do again some of what the one before did
        for at in (0..stride - BLOCK).step_by(BLOCK).chain([stride - BLOCK]) {
            let [a, b, c, d] = sum_columns(inputs, stride, at, &pairs);
            let bytes = _mm256_packus_epi16(
                _mm256_packs_epi32(a.rounded(), b.rounded()),
                _mm256_packs_epi32(c.rounded(), d.rounded()),
            );
            let target = &mut row[at..at + BLOCK];
            // SAFETY: the target has 32 bytes
            unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), bytes) };
        }
    }
    output
}

/// Sums of the 32 columns at `at`, in the order that packing brings into that of the columns.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_columns(inputs: &[u8], stride: usize, at: usize, pairs: &[Pair]) -> [Sums; 4] {
    let zero = _mm256_setzero_si256();
    let [mut a, mut b, mut c, mut d] = [Sums::zero(); 4];
    for (pair, rows) in pairs.iter().zip(inputs.chunks(2 * stride)) {
        // an odd last row is read twice, the second time for a weight of 0
        let (first, second) = (&rows[at..][..BLOCK], &rows[rows.len() - stride + at..][..BLOCK]);
        // SAFETY: both have 32 bytes
        let (first, second) =
            unsafe { (_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast())) };
        let weights = pair.broadcast();
        let (left, right) = (_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second));
        a.add(_mm256_unpacklo_epi8(left, zero), weights);
        b.add(_mm256_unpackhi_epi8(left, zero), weights);
        c.add(_mm256_unpacklo_epi8(right, zero), weights);
        d.add(_mm256_unpackhi_epi8(right, zero), weights);
    }
    [a, b, c, d]
}
