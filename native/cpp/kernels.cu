// The image tower's kernels for inference in bfloat16 on a GPU. NVRTC compiles them when the program runs, for the GPU that is there
// and for a model's windows: WINDOW is the tokens of a side, HEAD the channels of a head, a multiple of 32. No header is needed.
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

// s + bias + 3x3 depthwise convolution of s with zeros around it, where s = x + y if SUM, else x. `weight` is [9, C] and `bias` [C] in
// f32. A thread has two channels; a block a strip of ROWS x COLUMNS tokens of one image. What the next column needs is loaded while one
// is computed, without branches, so that all of it is on its way at the same time.
template <bool SUM>
__device__ __forceinline__ void convolve(const u32 *x, const u32 *y, const float2 *weight, const float2 *bias, u32 *out, int height, int width, int pairs) {
    int pair = blockIdx.x * 128 + threadIdx.x;
    if (pair >= pairs) return;
    int strips = (width + COLUMNS - 1) / COLUMNS, row = blockIdx.y * ROWS;
    int from = (blockIdx.z % strips) * COLUMNS, to = min(from + COLUMNS, width);
    i64 image = (i64)(blockIdx.z / strips) * height;

    u32 loaded[ROWS + 2], added[ROWS + 2];
    bool inside[ROWS + 2];
    auto load = [&](int at) {
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) {
            int h = row + r - 1;
            inside[r] = h >= 0 && h < height && at >= 0 && at < width;
            i64 place = inside[r] ? ((image + h) * width + at) * pairs + pair : pair;
            loaded[r] = x[place];
            if (SUM) added[r] = y[place];
        }
    };
    auto unpack = [&](float2 *into) {
#pragma unroll
        for (int r = 0; r < ROWS + 2; ++r) {
            u32 value = SUM ? pack(low(loaded[r]) + low(added[r]), high(loaded[r]) + high(added[r])) : loaded[r];
            value = inside[r] ? value : 0;
            into[r] = make_float2(low(value), high(value));
        }
    };
    float2 left[ROWS + 2], middle[ROWS + 2], right[ROWS + 2];
    load(from - 1);
    unpack(left);
    load(from);
    unpack(middle);
    load(from + 1);
    float2 w[9], b = bias[pair];
#pragma unroll
    for (int i = 0; i < 9; ++i) w[i] = weight[i * pairs + pair];
    for (int at = from; at < to; ++at) {
        unpack(right);
        load(at + 2);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            float2 sum = make_float2(b.x + middle[r + 1].x, b.y + middle[r + 1].y);
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                const float2 &l = left[r + i], &m = middle[r + i], &n = right[r + i];
                sum.x += w[3 * i].x * l.x + w[3 * i + 1].x * m.x + w[3 * i + 2].x * n.x;
                sum.y += w[3 * i].y * l.y + w[3 * i + 1].y * m.y + w[3 * i + 2].y * n.y;
            }
            if (row + r < height) out[((image + row + r) * width + at) * pairs + pair] = pack(sum.x, sum.y);
        }
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
#define WARPS (TILES % 3 == 0 ? 3 : 4)

__device__ __forceinline__ void multiply(float *sum, const u32 *a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Attention inside windows: qkv [B, H, W, 3C], where q, k and v are each [heads, HEAD], to [B, H, W, C]. The grid counts as padded up
// to whole windows with tokens whose key and value are `bias` [3C]. A block has one head (x) of one window (y) of one image (z), its
// keys and values in shared memory; a warp takes 16 queries at a time, whose products with all keys fit in its registers. `scale` is
// HEAD^-0.5, times the logarithm of e to the base 2.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
window_attention(const u16 *qkv, const u16 *bias, u16 *out, int height, int width, float scale) {
    __shared__ __align__(16) u16 keys[PADDED * STRIDE];
    __shared__ __align__(16) u16 values[PADDED * STRIDE];
    int head = blockIdx.x, channels = gridDim.x * HEAD, across = (width + WINDOW - 1) / WINDOW;
    int top = blockIdx.y / across * WINDOW, left = blockIdx.y % across * WINDOW;
    i64 image = (i64)blockIdx.z * height;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    // the place of a token in the grid, or -1 beyond it
    auto place = [&](int token) -> i64 {
        int h = top + token / WINDOW, w = left + token % WINDOW;
        return token < TOKENS && h < height && w < width ? (image + h) * width + w : -1;
    };
    auto row = [&](int token) {
        i64 at = place(token);
        return (at < 0 ? bias : qkv + at * 3 * channels) + head * HEAD;
    };

#pragma unroll
    for (int i = threadIdx.x; i < PADDED * HEAD / 8; i += 32 * WARPS) {
        int token = i / (HEAD / 8), part = i % (HEAD / 8) * 8;
        const u16 *from = row(token) + part;
        *(uint4 *)(keys + token * STRIDE + part) = *(const uint4 *)(from + channels);
        *(uint4 *)(values + token * STRIDE + part) = *(const uint4 *)(from + 2 * channels);
    }
    __syncthreads();

    // where this lane's rows of 8 x 8 blocks begin, as ldmatrix wants them
    u32 key_rows = (u32)__cvta_generic_to_shared(keys + lane % 8 * STRIDE + lane / 8 * 8);
    u32 value_rows = (u32)__cvta_generic_to_shared(values + (lane % 8 + lane / 8 % 2 * 8) * STRIDE + lane / 16 * 8);
    for (int tile = warp; tile < TILES; tile += WARPS) {
        int first = tile * 16 + lane / 4;
        u32 query[HEAD / 16][4];
        const u16 *upper = row(first) + lane % 4 * 2, *lower = row(first + 8) + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < HEAD / 16; ++k) {
            query[k][0] = *(const u32 *)(upper + 16 * k), query[k][1] = *(const u32 *)(lower + 16 * k);
            query[k][2] = *(const u32 *)(upper + 16 * k + 8), query[k][3] = *(const u32 *)(lower + 16 * k + 8);
        }
        // of 16 queries with all keys, 8 keys a part
        float products[2 * TILES][4];
        float most[2] = {-1e30f, -1e30f};
#pragma unroll
        for (int j = 0; j < 2 * TILES; ++j) {
            float *p = products[j];
            p[0] = p[1] = p[2] = p[3] = 0.f;
#pragma unroll
            for (int k = 0; k < HEAD / 32; ++k) {
                u32 b[4];
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                             : "r"(key_rows + (j * 8 * STRIDE + k * 32) * 2));
                multiply(p, query[2 * k], b[0], b[1]);
                multiply(p, query[2 * k + 1], b[2], b[3]);
            }
            if (8 * j + 7 >= TOKENS) {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (8 * j + lane % 4 * 2 + i % 2 >= TOKENS) p[i] = -1e30f;
            }
            most[0] = fmaxf(most[0], fmaxf(p[0], p[1]));
            most[1] = fmaxf(most[1], fmaxf(p[2], p[3]));
        }
        float sum[2] = {0.f, 0.f};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 1));
            most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 2));
        }
#pragma unroll
        for (int j = 0; j < 2 * TILES; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                products[j][i] = exp2f((products[j][i] - most[i / 2]) * scale);
                sum[i / 2] += products[j][i];
            }
        }
        float mixed[HEAD / 8][4] = {};
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const float *p = products[2 * t], *q = products[2 * t + 1];
            const u32 a[4] = {pack(p[0], p[1]), pack(p[2], p[3]), pack(q[0], q[1]), pack(q[2], q[3])};
#pragma unroll
            for (int n = 0; n < HEAD / 16; ++n) {
                u32 b[4];
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                             : "r"(value_rows + (t * 16 * STRIDE + n * 16) * 2));
                multiply(mixed[2 * n], a, b[0], b[1]);
                multiply(mixed[2 * n + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
            i64 at = place(first + 8 * i);
            if (at < 0) continue;
            u16 *to = out + at * channels + head * HEAD + lane % 4 * 2;
            float inverse = 1.f / sum[i];
#pragma unroll
            for (int n = 0; n < HEAD / 8; ++n) *(u32 *)(to + 8 * n) = pack(mixed[n][2 * i] * inverse, mixed[n][2 * i + 1] * inverse);
        }
    }
}
