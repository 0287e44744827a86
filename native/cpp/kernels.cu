// The image tower's kernels for inference in bfloat16 on a GPU. NVRTC compiles them when the program runs, for the GPU that is there
// and for a model's sizes: WINDOW is the tokens of a window's side, HEAD the channels of a head and GROUP those of a group, each 32 or
// 64. No header is needed.
// Grids of tokens are [B, H, W, C]. Sums are taken in f32.

typedef unsigned short u16; // a bfloat16
typedef unsigned int u32;   // two of them, the first in the lower half
typedef long long i64;

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 pack(float first, float second) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
}

// Rows of tokens that a thread of `depthwise` convolves at once, and the columns that it goes along.
#define ROWS 4
#define COLUMNS 30

// The sum of two pairs, rounded: a * 1 + b, as compute capability 8.0 has no addition of pairs.
__device__ __forceinline__ u32 add(u32 a, u32 b) {
    u32 out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return out;
}

// s + bias + 3x3 depthwise convolution of s with zeros around it, where s = x + y if SUM, else x. `weight` is [9, C] and `bias` [C] in
// f32. A thread has two channels; a block a strip of ROWS x COLUMNS tokens of one image. What the next column needs is loaded while one
// is computed. In place of rows and columns beyond the grid others are loaded, and taken as zeros.
template <bool SUM>
__device__ __forceinline__ void convolve(const u32 *x, const u32 *y, const float2 *weight, const float2 *bias, u32 *out, int height, int width, int pairs) {
    int pair = blockIdx.x * 128 + threadIdx.x;
    if (pair >= pairs) return;
    int strips = (width + COLUMNS - 1) / COLUMNS, row = blockIdx.y * ROWS;
    int from = blockIdx.z % strips * COLUMNS, to = min(from + COLUMNS, width);
    i64 image = (i64)(blockIdx.z / strips) * height * width * pairs;
    x += image, out += image;
    if (SUM) y += image;

    u32 loaded[ROWS + 2], added[ROWS + 2], places[ROWS + 2];
    bool inside[ROWS + 2];
#pragma unroll
    for (int r = 0; r < ROWS + 2; ++r) {
        int h = row + r - 1;
        inside[r] = h >= 0 && h < height;
        places[r] = (min(max(h, 0), height - 1) * width + max(from - 1, 0)) * pairs + pair;
    }
    auto load = [&](int step) {
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) {
            loaded[r] = x[places[r]];
            if (SUM) added[r] = y[places[r]];
            places[r] += step;
        }
    };
    auto unpack = [&](float2 *into) {
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) {
            u32 value = SUM ? add(loaded[r], added[r]) : loaded[r];
            into[r] = inside[r] ? make_float2(low(value), high(value)) : make_float2(0.f, 0.f);
        }
    };
    auto clear = [&](float2 *into) {
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) into[r] = make_float2(0.f, 0.f);
    };
    float2 left[ROWS + 2], middle[ROWS + 2], right[ROWS + 2];
    load(from > 0 ? pairs : 0);
    unpack(left);
    if (from == 0) clear(left);
    load(from + 1 < width ? pairs : 0);
    unpack(middle);
    load(from + 2 < width ? pairs : 0);
    float2 w[9], b = bias[pair];
#pragma unroll
    for (int i = 0; i < 9; ++i) w[i] = weight[i * pairs + pair];
    // s itself
    w[4].x += 1.f, w[4].y += 1.f;
    int place = (row * width + from) * pairs + pair, line = width * pairs;
    for (int at = from; at < to; ++at) {
        if (at + 1 < width) unpack(right);
        else clear(right);
        load(at + 3 < width ? pairs : 0);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float2 sum = b;
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                const float2 &l = left[r + i], &m = middle[r + i], &n = right[r + i];
                sum.x = fmaf(w[3 * i].x, l.x, sum.x), sum.y = fmaf(w[3 * i].y, l.y, sum.y);
                sum.x = fmaf(w[3 * i + 1].x, m.x, sum.x), sum.y = fmaf(w[3 * i + 1].y, m.y, sum.y);
                sum.x = fmaf(w[3 * i + 2].x, n.x, sum.x), sum.y = fmaf(w[3 * i + 2].y, n.y, sum.y);
            }
            if (row + r < height) out[place + r * line] = pack(sum.x, sum.y);
        }
        place += pairs;
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) left[r] = middle[r], middle[r] = right[r];
    }
}

extern "C" __global__ void __launch_bounds__(128)
depthwise(const u32 *x, const float2 *weight, const float2 *bias, u32 *out, int height, int width, int pairs) {
    convolve<false>(x, nullptr, weight, bias, out, height, width, pairs);
}

extern "C" __global__ void __launch_bounds__(128)
depthwise_of_sum(const u32 *x, const u32 *y, const float2 *weight, const float2 *bias, u32 *out, int height, int width, int pairs) {
    convolve<true>(x, y, weight, bias, out, height, width, pairs);
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Layer normalisation of rows of C = 8 * eighths <= 2048 channels, `weight` and `bias` [C] in f32. A warp has a row.
extern "C" __global__ void __launch_bounds__(256)
layer_norm(const uint4 *x, const float4 *weight, const float4 *bias, uint4 *out, int rows, int eighths, float eps) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const uint4 *from = x + (i64)row * eighths;
    uint4 values[8];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (lane + 32 * i >= eighths) break;
        uint4 v = values[i] = from[lane + 32 * i];
        sum += low(v.x) + high(v.x) + low(v.y) + high(v.y) + low(v.z) + high(v.z) + low(v.w) + high(v.w);
    }
    float mean = sum_of_warp(sum) / (8 * eighths), squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (lane + 32 * i >= eighths) break;
        const u32 v[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float a = low(v[j]) - mean, b = high(v[j]) - mean;
            squares += a * a + b * b;
        }
    }
    float scale = rsqrtf(sum_of_warp(squares) / (8 * eighths) + eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int at = lane + 32 * i;
        if (at >= eighths) break;
        const uint4 v = values[i];
        float4 w = weight[2 * at], b = bias[2 * at], w2 = weight[2 * at + 1], b2 = bias[2 * at + 1];
        auto pair = [&](u32 value, float wl, float wh, float bl, float bh) {
            return pack((low(value) - mean) * scale * wl + bl, (high(value) - mean) * scale * wh + bh);
        };
        out[(i64)row * eighths + at] = make_uint4(pair(v.x, w.x, w.y, b.x, b.y), pair(v.y, w.z, w.w, b.z, b.w),
                                                  pair(v.z, w2.x, w2.y, b2.x, b2.y), pair(v.w, w2.z, w2.w, b2.z, b2.w));
    }
}

#define TOKENS (WINDOW * WINDOW)
#define TILES ((TOKENS + 15) / 16)
#define PADDED (16 * TILES)
#define STRIDE (HEAD + 8) // rows of shared memory that no two lanes find in one bank
// tiles of keys that a warp multiplies at once
#define PORTION (TILES % 3 == 0 ? 3 : TILES % 2 == 0 ? 2 : TILES)
#define WARPS (TILES % 3 == 0 ? 3 : 4)

__device__ __forceinline__ void multiply(float *sum, const u32 *a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four blocks of 8 x 8 from shared memory, each lane giving the place of a row.
template <bool TRANSPOSED> __device__ __forceinline__ void load_blocks(u32 *b, u32 row) {
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(row));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(row));
}

// Two to the power of x, and 0 for what is very small.
__device__ __forceinline__ float power_of_two(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// One window of the grid, and one head of it.
struct Window {
    const u16 *qkv, *bias;
    u16 *out;
    i64 corner; // its first token
    int width, channels;
    int columns, inside; // the window's columns and tokens that are in the grid; tokens are numbered row by row
    int reciprocal;      // of `columns`, times 2^16, rounded up

    __device__ __forceinline__ i64 place(int token) const {
        int row = token * reciprocal >> 16;
        return corner + row * width + token - row * columns;
    }
    __device__ __forceinline__ const u16 *row(int token) const { return token < inside ? qkv + place(token) * 3 * channels : bias; }
};

// What the window's queries make of its keys and values. All tokens beyond the grid have one key and one value, which come behind those
// of the grid and count as often as there are such tokens. A warp takes 16 queries at a time, and PORTION x 16 keys; what it has mixed
// so far is scaled anew when the largest product grows.
__device__ __forceinline__ void attend(const Window &window, const u16 *keys, const u16 *values, float scale) {
    int lane = threadIdx.x % 32, count = window.inside + (window.inside < TOKENS);
    // where this lane's rows of 8 x 8 blocks begin, as ldmatrix wants them
    u32 key_rows = (u32)__cvta_generic_to_shared(keys + lane % 8 * STRIDE + lane / 8 * 8);
    u32 value_rows = (u32)__cvta_generic_to_shared(values + (lane % 8 + lane / 8 % 2 * 8) * STRIDE + lane / 16 * 8);
    for (int tile = threadIdx.x / 32; 16 * tile < window.inside; tile += WARPS) {
        int first = tile * 16 + lane / 4;
        u32 query[HEAD / 16][4];
        const u16 *upper = window.row(first) + lane % 4 * 2, *lower = window.row(first + 8) + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < HEAD / 16; ++k) {
            query[k][0] = *(const u32 *)(upper + 16 * k), query[k][1] = *(const u32 *)(lower + 16 * k);
            query[k][2] = *(const u32 *)(upper + 16 * k + 8), query[k][3] = *(const u32 *)(lower + 16 * k + 8);
        }
        float most[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f}, mixed[HEAD / 8][4] = {};
#pragma unroll 1
        for (int from = 0; from < count; from += 16 * PORTION) {
            // of 16 queries with the keys, 8 keys a part
            float products[2 * PORTION][4], larger[2] = {most[0], most[1]};
#pragma unroll
            for (int j = 0; j < 2 * PORTION; ++j) {
                float *p = products[j];
                p[0] = p[1] = p[2] = p[3] = 0.f;
#pragma unroll
                for (int k = 0; k < HEAD / 32; ++k) {
                    u32 b[4];
                    load_blocks<false>(b, key_rows + (from * STRIDE + j * 8 * STRIDE + k * 32) * 2);
                    multiply(p, query[2 * k], b[0], b[1]);
                    multiply(p, query[2 * k + 1], b[2], b[3]);
                }
            }
            // of the last keys some count more than once, or not at all
            bool last = from + 16 * PORTION > window.inside;
            auto key = [&](int j, int i) { return from + 8 * j + lane % 4 * 2 + i % 2; };
            if (last) {
#pragma unroll
                for (int j = 0; j < 2 * PORTION; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (key(j, i) >= count) products[j][i] = -1e30f;
            }
#pragma unroll
            for (int j = 0; j < 2 * PORTION; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) larger[i / 2] = fmaxf(larger[i / 2], products[j][i]);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                larger[i] = fmaxf(larger[i], __shfl_xor_sync(0xffffffffu, larger[i], 1));
                larger[i] = fmaxf(larger[i], __shfl_xor_sync(0xffffffffu, larger[i], 2));
                float factor = power_of_two((most[i] - larger[i]) * scale);
                most[i] = larger[i], larger[i] *= scale, sum[i] *= factor;
#pragma unroll
                for (int n = 0; n < HEAD / 8; ++n) mixed[n][2 * i] *= factor, mixed[n][2 * i + 1] *= factor;
            }
#pragma unroll
            for (int j = 0; j < 2 * PORTION; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i) products[j][i] = power_of_two(products[j][i] * scale - larger[i / 2]);
            if (last) {
#pragma unroll
                for (int j = 0; j < 2 * PORTION; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (key(j, i) == window.inside) products[j][i] *= TOKENS - window.inside;
            }
#pragma unroll
            for (int t = 0; t < PORTION; ++t) {
                const float *p = products[2 * t], *q = products[2 * t + 1];
                sum[0] += p[0] + p[1] + q[0] + q[1], sum[1] += p[2] + p[3] + q[2] + q[3];
                const u32 a[4] = {pack(p[0], p[1]), pack(p[2], p[3]), pack(q[0], q[1]), pack(q[2], q[3])};
#pragma unroll
                for (int n = 0; n < HEAD / 16; ++n) {
                    u32 b[4];
                    load_blocks<true>(b, value_rows + (from * STRIDE + t * 16 * STRIDE + n * 16) * 2);
                    multiply(mixed[2 * n], a, b[0], b[1]);
                    multiply(mixed[2 * n + 1], a, b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
            int token = first + 8 * i;
            if (token >= window.inside) continue;
            u16 *to = window.out + window.place(token) * window.channels + lane % 4 * 2;
            float inverse = 1.f / sum[i];
#pragma unroll
            for (int n = 0; n < HEAD / 8; ++n) *(u32 *)(to + 8 * n) = pack(mixed[n][2 * i] * inverse, mixed[n][2 * i + 1] * inverse);
        }
    }
}

// Attention inside windows: qkv [B, H, W, 3C], where q, k and v are each [heads, HEAD], to [B, H, W, C]. The grid counts as padded up
// to whole windows with tokens whose key and value are `bias` [3C]. A block has one head (x) of one window (y) of one image (z), its
// keys and values in shared memory. `scale` is HEAD^-0.5, times the logarithm of e to the base 2.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
window_attention(const u16 *qkv, const u16 *bias, u16 *out, int height, int width, float scale) {
    __shared__ __align__(16) u16 keys[PADDED * STRIDE];
    __shared__ __align__(16) u16 values[PADDED * STRIDE];
    int own = blockIdx.x * HEAD, across = (width + WINDOW - 1) / WINDOW;
    int top = blockIdx.y / across * WINDOW, left = blockIdx.y % across * WINDOW;
    Window window = {qkv + own, bias + own, out + own, ((i64)blockIdx.z * height + top) * width + left, width, (int)gridDim.x * HEAD};
    window.columns = min(WINDOW, width - left), window.inside = window.columns * min(WINDOW, height - top);
    window.reciprocal = (65535 + window.columns) / window.columns;

    // as many as are multiplied: whole portions
    int loaded = (window.inside / (16 * PORTION) + 1) * 16 * PORTION;
#pragma unroll
    for (int i = threadIdx.x; i < PADDED * HEAD / 8; i += 32 * WARPS) {
        int token = i / (HEAD / 8), part = i % (HEAD / 8) * 8;
        if (token >= loaded) break;
        const u16 *from = window.row(token) + part + window.channels;
        *(uint4 *)(keys + token * STRIDE + part) = *(const uint4 *)from;
        *(uint4 *)(values + token * STRIDE + part) = *(const uint4 *)(from + window.channels);
    }
    __syncthreads();
    attend(window, keys, values, scale);
}

// Attention over the channels of each group, in three steps. A warp has a group; a block has `share` tokens of an image. The rows, the
// columns and the terms of the sum of a product of matrices may be in any order, as long as both factors agree: here it is one in which
// what a lane needs lies together in memory, so that nothing goes through shared memory.

// The first token of this block's share, and the one after its last.
__device__ __forceinline__ int2 share_of(int tokens, int share) {
    int from = blockIdx.y * share;
    return make_int2(from, min(from + share, tokens));
}

// Products of all channels of a group's queries with those of its keys, summed over the tokens of a block: qkv [B, tokens, 3C] to
// [B, groups, blocks, GROUP, GROUP] in f32.
extern "C" __global__ void __launch_bounds__(128)
channel_products(const u16 *qkv, float *products, int tokens, int groups, int share) {
    constexpr int OWN = GROUP / 8; // channels of a lane
    int group = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, channels = groups * GROUP;
    if (group >= groups) return;
    const int2 range = share_of(tokens, share);
    const u16 *image = qkv + (i64)blockIdx.z * tokens * 3 * channels + group * GROUP + lane / 4 * OWN;

    struct __align__(2 * OWN) Row {
        u32 pairs[OWN / 2];
    } queries[4], keys[4];
    auto load = [&](int at) {
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            int token = at + 4 * p + lane % 4;
            bool inside = token < range.y;
            const u16 *from = image + (i64)(inside ? token : range.x) * 3 * channels;
            queries[p] = *(const Row *)from, keys[p] = *(const Row *)(from + channels);
#pragma unroll
            for (int i = 0; i < OWN / 2; ++i) queries[p].pairs[i] = inside ? queries[p].pairs[i] : 0;
        }
    };
    // a channel at two tokens
    auto two = [&](const Row &first, const Row &second, int channel) {
        return __byte_perm(first.pairs[channel / 2], second.pairs[channel / 2], channel % 2 ? 0x7632 : 0x5410);
    };
    float sum[OWN / 2][OWN][4] = {};
    load(range.x);
    for (int at = range.x; at < range.y; at += 16) {
        u32 a[OWN / 2][4], b[OWN][2];
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            a[i / 2][i % 2] = two(queries[0], queries[1], i), a[i / 2][i % 2 + 2] = two(queries[2], queries[3], i);
            b[i][0] = two(keys[0], keys[1], i), b[i][1] = two(keys[2], keys[3], i);
        }
        load(at + 16);
#pragma unroll
        for (int m = 0; m < OWN / 2; ++m)
#pragma unroll
            for (int n = 0; n < OWN; ++n) multiply(sum[m][n], a[m], b[n][0], b[n][1]);
    }
    float *out = products + (((i64)blockIdx.z * groups + group) * gridDim.y + blockIdx.y) * GROUP * GROUP;
#pragma unroll
    for (int m = 0; m < OWN / 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int n = 0; n < OWN; n += 4) {
                float *to = out + (lane / 4 * OWN + 2 * m + i / 2) * GROUP + (lane % 4 * 2 + i % 2) * OWN + n;
                *(float4 *)to = make_float4(sum[m][n][i], sum[m][n + 1][i], sum[m][n + 2][i], sum[m][n + 3][i]);
            }
}

// The softmax over keys of what `channel_products` gives, summed over its `blocks`: [B, groups, GROUP, GROUP]. `scale` is
// tokens^-0.5, times the logarithm of e to the base 2.
extern "C" __global__ void __launch_bounds__(128)
channel_weights(const float *products, u16 *weights, int blocks, float scale) {
    constexpr int OWN = GROUP / 32; // keys of a lane
    i64 group = (i64)blockIdx.y * gridDim.x + blockIdx.x;
    int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < GROUP; row += 4) {
        float values[OWN] = {}, most = -1e30f, sum = 0.f;
        for (int block = 0; block < blocks; ++block)
#pragma unroll
            for (int i = 0; i < OWN; ++i) values[i] += products[((group * blocks + block) * GROUP + row) * GROUP + 32 * i + lane];
#pragma unroll
        for (int i = 0; i < OWN; ++i) most = fmaxf(most, values[i]);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
#pragma unroll
        for (int i = 0; i < OWN; ++i) sum += values[i] = exp2f((values[i] - most) * scale);
        float inverse = 1.f / sum_of_warp(sum);
#pragma unroll
        for (int i = 0; i < OWN; ++i) weights[(group * GROUP + row) * GROUP + 32 * i + lane] = (u16)pack(values[i] * inverse, 0.f);
    }
}

// The values of a group's channels, mixed by the weights: qkv [B, tokens, 3C] and [B, groups, GROUP, GROUP] to [B, tokens, C].
extern "C" __global__ void __launch_bounds__(128)
channel_mix(const u16 *qkv, const u16 *weights, u16 *out, int tokens, int groups, int share) {
    constexpr int OWN = GROUP / 4; // channels of a lane
    int group = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, channels = groups * GROUP;
    if (group >= groups) return;
    const int2 range = share_of(tokens, share);
    int own = group * GROUP + lane % 4 * OWN;
    const u16 *image = qkv + (i64)blockIdx.z * tokens * 3 * channels + 2 * channels + own;
    u16 *to = out + (i64)blockIdx.z * tokens * channels + own;

    union Row {
        uint4 parts[OWN / 8];
        u32 pairs[OWN / 2];
    };
    Row b[OWN / 2];
#pragma unroll
    for (int n = 0; n < OWN / 2; ++n) {
        int row = lane / 8 * OWN + 2 * n + lane / 4 % 2;
        const u16 *from = weights + (((i64)blockIdx.z * groups + group) * GROUP + row) * GROUP + lane % 4 * OWN;
#pragma unroll
        for (int i = 0; i < OWN / 8; ++i) b[n].parts[i] = ((const uint4 *)from)[i];
    }
    for (int at = range.x; at < range.y; at += 32) {
        // tokens lane / 4 + 8 * r
        Row values[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            int token = min(at + 8 * r + lane / 4, range.y - 1);
            const uint4 *from = (const uint4 *)(image + (i64)token * 3 * channels);
#pragma unroll
            for (int i = 0; i < OWN / 8; ++i) values[r].parts[i] = from[i];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Row &upper = values[2 * half], &lower = values[2 * half + 1];
            Row mixed[2];
#pragma unroll
            for (int n = 0; n < OWN / 2; ++n) {
                float sum[4] = {};
#pragma unroll
                for (int k = 0; k < OWN / 2; k += 2) {
                    const u32 a[4] = {upper.pairs[k], lower.pairs[k], upper.pairs[k + 1], lower.pairs[k + 1]};
                    multiply(sum, a, b[n].pairs[k], b[n].pairs[k + 1]);
                }
                mixed[0].pairs[n] = pack(sum[0], sum[1]), mixed[1].pairs[n] = pack(sum[2], sum[3]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int token = at + 16 * half + 8 * r + lane / 4;
                if (token >= range.y) continue;
#pragma unroll
                for (int i = 0; i < OWN / 8; ++i) ((uint4 *)(to + (i64)token * channels))[i] = mixed[r].parts[i];
            }
        }
    }
}
