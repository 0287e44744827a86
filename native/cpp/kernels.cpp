// See kernels.h. Compiled several times, with MT_ISA naming the instruction set: no header with inline functions may be used
// here, or the linker could keep a version of them that not every processor runs.
#include "kernels.h"

#define MT_JOIN2(a, b) a##b
#define MT_JOIN(a, b) MT_JOIN2(a, b)

namespace {

#ifdef __AVX512F__
constexpr int W = 16; // lanes of a vector
constexpr int ROWS2 = 6, ROWS3 = 4;
#else
constexpr int W = 8;
constexpr int ROWS2 = 4, ROWS3 = 3;
#endif
constexpr int64_t PAD = 16; // rows of scratch are padded to this many floats
constexpr int64_t CHUNK = 128; // tokens of channel attention at a time

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

inline int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

inline vf load(const float *p) {
    vf v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
inline vf load(const uint16_t *p) {
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
inline void store(uint16_t *p, vf v) {
    vu u = (vu)v;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu nan = (vu)(v != v);
    vh h = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), vh);
    __builtin_memcpy(p, &h, sizeof h);
}
inline float scalar(const float *p) { return *p; }
inline float scalar(const uint16_t *p) {
    uint32_t u = (uint32_t)*p << 16;
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
inline void put(float *p, float v) { *p = v; }
inline void put(uint16_t *p, float v) {
    uint32_t u;
    __builtin_memcpy(&u, &v, 4);
    *p = v != v ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// Copies a row of n numbers, times `factor`, to floats padded with zeros up to `until`.
template <typename T> inline void take(const T *from, int64_t n, float factor, float *to, int64_t until) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, load(from + i) * factor);
    for (; i < n; ++i) to[i] = scalar(from + i) * factor;
    for (; i < until; ++i) to[i] = 0;
}
template <typename T> inline void give(const float *from, int64_t n, float factor, T *to) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, load(from + i) * factor);
    for (; i < n; ++i) put(to + i, from[i] * factor);
}
inline void clear(float *p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

// to[columns, ld] = from[rows, columns]^T, with zeros from `rows` to ld.
inline void transpose(const float *from, int64_t rows, int64_t columns, int64_t from_ld, float *to, int64_t ld) {
    for (int64_t j = 0; j < columns; ++j) {
        for (int64_t i = 0; i < rows; ++i) to[j * ld + i] = from[i * from_ld + j];
        for (int64_t i = rows; i < ld; ++i) to[j * ld + i] = 0;
    }
}

// A matrix read one number at a time, in either order.
struct Left {
    const float *data;
    int64_t row, column;
};

template <int M, int N> inline void tile(int64_t depth, Left a, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
    vf sum[M][N];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) sum[i][j] = add ? load(c + i * ldc + j * W) : vf{};
    for (int64_t k = 0; k < depth; ++k) {
        vf right[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) right[j] = load(b + k * ldb + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            float left = a.data[i * a.row + k * a.column];
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) sum[i][j] += right[j] * left;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) store(c + i * ldc + j * W, sum[i][j]);
}

template <int M, int N>
inline void strip(int64_t rows, int64_t depth, Left a, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
    int64_t i = 0;
    for (; i + M <= rows; i += M) tile<M, N>(depth, {a.data + i * a.row, a.row, a.column}, b, ldb, c + i * ldc, ldc, add);
    for (; i < rows; ++i) tile<1, N>(depth, {a.data + i * a.row, a.row, a.column}, b, ldb, c + i * ldc, ldc, add);
}

// c[rows, columns] (+)= a[rows, depth] * b[depth, columns]; columns is a multiple of PAD.
void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, const float *b, int64_t ldb, float *c, int64_t ldc,
              bool add) {
    int64_t j = 0;
    while (columns - j >= 3 * W && columns - j != 4 * W) {
        strip<ROWS3, 3>(rows, depth, a, b + j, ldb, c + j, ldc, add);
        j += 3 * W;
    }
    for (; columns - j >= 2 * W; j += 2 * W) strip<ROWS2, 2>(rows, depth, a, b + j, ldb, c + j, ldc, add);
    for (; j < columns; j += W) strip<ROWS2, 1>(rows, depth, a, b + j, ldb, c + j, ldc, add);
}

// exp for arguments of at most 0; below -87 as for -87. Within 2 units in the last place.
inline vf exponential(vf x) {
    x = x < -87.f ? vf{} - 87.f : x;
    vf n = x * 1.44269504f + 12582912.f;
    n -= 12582912.f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}
inline float sum_of(vf v) {
    float s = 0;
    for (int i = 0; i < W; ++i) s += v[i];
    return s;
}

// Softmax of n logits in place, zeros up to `until`; the last counts `weight` times.
inline void softmax(float *row, int64_t n, int64_t until, float weight) {
    const vf lowest = vf{} - __builtin_inff();
    for (int64_t i = n; i < until; ++i) row[i] = -__builtin_inff();
    vf top = lowest;
    for (int64_t i = 0; i < until; i += W) {
        vf v = load(row + i);
        top = v > top || v != v ? v : top;
    }
    float most = top[0];
    for (int i = 1; i < W; ++i) most = top[i] > most || top[i] != top[i] ? top[i] : most;
    for (int64_t i = 0; i < until; i += W) store(row + i, exponential(load(row + i) - most));
    for (int64_t i = n; i < until; ++i) row[i] = 0;
    row[n - 1] *= weight;
    vf total = vf{};
    for (int64_t i = 0; i < until; i += W) total += load(row + i);
    float inverse = 1.f / sum_of(total);
    for (int64_t i = 0; i < until; i += W) store(row + i, load(row + i) * inverse);
}

// The gradient of logits from that of probabilities, in place of the latter: p * (g - sum(p * g)).
inline void softmax_gradient(const float *p, float *g, int64_t until) {
    vf total = vf{};
    for (int64_t i = 0; i < until; i += W) total += load(p + i) * load(g + i);
    float dot = sum_of(total);
    for (int64_t i = 0; i < until; i += W) store(g + i, load(p + i) * (load(g + i) - dot));
}

inline float inverse_root(int64_t n) { return 1.f / __builtin_sqrtf((float)n); }

// ---- attention inside windows

// One task: its window's corner on the grid, the rows and columns of it that are real, and its head.
struct Place {
    int64_t image, top, left, rows, columns, head, window;

    Place(const WindowAttention &a, int64_t task) {
        int64_t down = (a.height + a.size - 1) / a.size, across = (a.width + a.size - 1) / a.size;
        head = task % a.heads;
        window = task / a.heads;
        image = window / (down * across);
        int64_t rest = window % (down * across);
        top = rest / across * a.size;
        left = rest % across * a.size;
        rows = top + a.size <= a.height ? a.size : a.height - top;
        columns = left + a.size <= a.width ? a.size : a.width - left;
    }
    // the position in [B, H, W] of the window's i-th real token
    int64_t token(const WindowAttention &a, int64_t i) const {
        return (image * a.height + top + i / columns) * a.width + left + i % columns;
    }
};

// q (scaled), k and v of a window, the real tokens first. All padded tokens are alike: one key stands for the `pads` of them.
struct Loaded {
    int64_t d, dp, real, keys, kp;
    float pads;
    float *q, *k, *v;
};

size_t window_scratch(const WindowAttention &a) {
    int64_t tokens = padded(a.size * a.size + 1), dp = padded(a.channels / a.heads);
    return (size_t)(2 * tokens * tokens + 8 * tokens * dp);
}

template <typename T> Loaded gather(const WindowAttention &a, const Place &at, float *scratch) {
    Loaded l;
    l.d = a.channels / a.heads;
    l.dp = padded(l.d);
    l.real = at.rows * at.columns;
    int64_t pads = a.size * a.size - l.real;
    l.pads = pads > 0 ? (float)pads : 1.f;
    l.keys = l.real + (pads > 0);
    l.kp = padded(l.keys);
    int64_t block = padded(a.size * a.size + 1) * l.dp;
    l.q = scratch;
    l.k = l.q + block;
    l.v = l.k + block;
    float scale = inverse_root(l.d);
    for (int64_t i = 0; i < l.real; ++i) {
        const T *from = (const T *)a.qkv + at.token(a, i) * 3 * a.channels + at.head * l.d;
        take(from, l.d, scale, l.q + i * l.dp, l.dp);
        take(from + a.channels, l.d, 1.f, l.k + i * l.dp, l.dp);
        take(from + 2 * a.channels, l.d, 1.f, l.v + i * l.dp, l.dp);
    }
    if (pads > 0) {
        const float *from = a.bias + at.head * l.d;
        take(from + a.channels, l.d, 1.f, l.k + l.real * l.dp, l.dp);
        take(from + 2 * a.channels, l.d, 1.f, l.v + l.real * l.dp, l.dp);
    }
    return l;
}

// The probabilities [real, kp] of a window into `p`; `turned` is scratch for k^T.
void probabilities(const Loaded &l, float *turned, float *p) {
    transpose(l.k, l.keys, l.d, l.dp, turned, l.kp);
    multiply(l.real, l.kp, l.d, {l.q, l.dp, 1}, turned, l.kp, p, l.kp, false);
    for (int64_t i = 0; i < l.real; ++i) softmax(p + i * l.kp, l.keys, l.kp, l.pads);
}

template <typename T> void window_forward_of(const WindowAttention &a, int64_t task, float *scratch) {
    Place at(a, task);
    Loaded l = gather<T>(a, at, scratch);
    int64_t block = padded(a.size * a.size + 1) * l.dp;
    float *turned = scratch + 3 * block, *out = scratch + 4 * block, *p = scratch + 8 * block;
    probabilities(l, turned, p);
    multiply(l.real, l.dp, l.keys, {p, l.kp, 1}, l.v, l.dp, out, l.dp, false);
    for (int64_t i = 0; i < l.real; ++i)
        give(out + i * l.dp, l.d, 1.f, (T *)a.out + at.token(a, i) * a.channels + at.head * l.d);
}

template <typename T> void window_backward_of(const WindowAttention &a, int64_t task, float *scratch) {
    Place at(a, task);
    Loaded l = gather<T>(a, at, scratch);
    int64_t tokens = padded(a.size * a.size + 1), block = tokens * l.dp;
    float *turned = scratch + 3 * block, *out = scratch + 4 * block, *dq = scratch + 5 * block, *dk = scratch + 6 * block,
          *dv = scratch + 7 * block, *p = scratch + 8 * block, *g = p + tokens * tokens;
    probabilities(l, turned, p);
    for (int64_t i = 0; i < l.real; ++i)
        take((const T *)a.grad_out + at.token(a, i) * a.channels + at.head * l.d, l.d, 1.f, out + i * l.dp, l.dp);
    transpose(l.v, l.keys, l.d, l.dp, turned, l.kp);
    multiply(l.real, l.kp, l.d, {out, l.dp, 1}, turned, l.kp, g, l.kp, false);
    for (int64_t i = 0; i < l.real; ++i) softmax_gradient(p + i * l.kp, g + i * l.kp, l.kp);
    multiply(l.keys, l.dp, l.real, {p, 1, l.kp}, out, l.dp, dv, l.dp, false);
    multiply(l.real, l.dp, l.keys, {g, l.kp, 1}, l.k, l.dp, dq, l.dp, false);
    multiply(l.keys, l.dp, l.real, {g, 1, l.kp}, l.q, l.dp, dk, l.dp, false);
    float scale = inverse_root(l.d);
    for (int64_t i = 0; i < l.real; ++i) {
        T *to = (T *)a.grad_qkv + at.token(a, i) * 3 * a.channels + at.head * l.d;
        give(dq + i * l.dp, l.d, scale, to);
        give(dk + i * l.dp, l.d, 1.f, to + a.channels);
        give(dv + i * l.dp, l.d, 1.f, to + 2 * a.channels);
    }
    if (l.keys > l.real) {
        float *to = a.grad_bias + at.window * 3 * a.channels + at.head * l.d;
        give(dk + l.real * l.dp, l.d, 1.f, to + a.channels);
        give(dv + l.real * l.dp, l.d, 1.f, to + 2 * a.channels);
    }
}

// ---- attention over channels

size_t channel_scratch(const ChannelAttention &a) {
    int64_t dp = padded(a.channels / a.groups);
    return (size_t)(7 * CHUNK * dp + 4 * dp * dp);
}

// What a task works on: the group's columns of qkv, in chunks of tokens copied to scratch.
template <typename T> struct Group {
    const ChannelAttention &a;
    int64_t d, dp, image, first;

    Group(const ChannelAttention &a, int64_t task) : a(a) {
        d = a.channels / a.groups;
        dp = padded(d);
        image = task / a.groups;
        first = task % a.groups * d;
    }
    const T *row(int64_t n, int64_t which) const {
        return (const T *)a.qkv + (image * a.tokens + n) * 3 * a.channels + which * a.channels + first;
    }
    void chunk(int64_t from, int64_t count, int64_t which, float *to) const {
        for (int64_t i = 0; i < count; ++i) take(row(from + i, which), d, 1.f, to + i * dp, dp);
    }
    // The probabilities [d, dp] into p: softmax over the keys' channels of q^T k * N^-0.5.
    void probabilities(float *q, float *k, float *p) const {
        for (int64_t n = 0; n < a.tokens; n += CHUNK) {
            int64_t count = n + CHUNK <= a.tokens ? CHUNK : a.tokens - n;
            chunk(n, count, 0, q);
            chunk(n, count, 1, k);
            multiply(d, dp, count, {q, 1, dp}, k, dp, p, dp, n > 0);
        }
        float scale = inverse_root(a.tokens);
        for (int64_t i = 0; i < d; ++i) {
            take(p + i * dp, d, scale, p + i * dp, dp);
            softmax(p + i * dp, d, dp, 1.f);
        }
    }
};

template <typename T> void channel_forward_of(const ChannelAttention &a, int64_t task, float *scratch) {
    Group<T> group(a, task);
    int64_t d = group.d, dp = group.dp;
    float *q = scratch, *k = q + CHUNK * dp, *p = scratch + 7 * CHUNK * dp, *turned = p + dp * dp;
    group.probabilities(q, k, p);
    transpose(p, d, d, dp, turned, dp);
    for (int64_t n = 0; n < a.tokens; n += CHUNK) {
        int64_t count = n + CHUNK <= a.tokens ? CHUNK : a.tokens - n;
        group.chunk(n, count, 2, q);
        multiply(count, dp, d, {q, dp, 1}, turned, dp, k, dp, false);
        for (int64_t i = 0; i < count; ++i)
            give(k + i * dp, d, 1.f, (T *)a.out + (group.image * a.tokens + n + i) * a.channels + group.first);
    }
}

template <typename T> void channel_backward_of(const ChannelAttention &a, int64_t task, float *scratch) {
    Group<T> group(a, task);
    int64_t d = group.d, dp = group.dp, block = CHUNK * dp;
    float *q = scratch, *k = q + block, *v = q + 2 * block, *out = q + 3 * block, *dq = q + 4 * block, *dk = q + 5 * block,
          *dv = q + 6 * block, *p = scratch + 7 * block, *g = p + dp * dp, *turned = g + dp * dp;
    group.probabilities(q, k, p);
    auto gradient = [&](int64_t n, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            take((const T *)a.grad_out + (group.image * a.tokens + n + i) * a.channels + group.first, d, 1.f, out + i * dp, dp);
    };
    for (int64_t n = 0; n < a.tokens; n += CHUNK) {
        int64_t count = n + CHUNK <= a.tokens ? CHUNK : a.tokens - n;
        gradient(n, count);
        group.chunk(n, count, 2, v);
        multiply(d, dp, count, {out, 1, dp}, v, dp, g, dp, n > 0);
    }
    for (int64_t i = 0; i < d; ++i) softmax_gradient(p + i * dp, g + i * dp, dp);
    transpose(g, d, d, dp, turned, dp);
    float scale = inverse_root(a.tokens);
    for (int64_t n = 0; n < a.tokens; n += CHUNK) {
        int64_t count = n + CHUNK <= a.tokens ? CHUNK : a.tokens - n;
        gradient(n, count);
        group.chunk(n, count, 0, q);
        group.chunk(n, count, 1, k);
        multiply(count, dp, d, {k, dp, 1}, turned, dp, dq, dp, false);
        multiply(count, dp, d, {q, dp, 1}, g, dp, dk, dp, false);
        multiply(count, dp, d, {out, dp, 1}, p, dp, dv, dp, false);
        for (int64_t i = 0; i < count; ++i) {
            T *to = (T *)a.grad_qkv + (group.image * a.tokens + n + i) * 3 * a.channels + group.first;
            give(dq + i * dp, d, scale, to);
            give(dk + i * dp, d, scale, to + a.channels);
            give(dv + i * dp, d, 1.f, to + 2 * a.channels);
        }
    }
}

// ---- depthwise convolution

template <typename T> void depthwise_of(const Depthwise &a, int64_t task) {
    int64_t image = task / a.height, y = task % a.height, c = a.channels;
    const T *x = (const T *)a.x + image * a.height * a.width * c;
    T *out = (T *)a.out + task * a.width * c;
    for (int64_t column = 0; column < a.width; ++column) {
        const T *rows[9];
        for (int64_t k = 0; k < 9; ++k) {
            int64_t yy = y + k / 3 - 1, xx = column + k % 3 - 1;
            bool inside = yy >= 0 && yy < a.height && xx >= 0 && xx < a.width;
            rows[k] = inside ? x + (yy * a.width + xx) * c : nullptr;
        }
        int64_t i = 0;
        for (; i + W <= c; i += W) {
            vf sum = load(rows[4] + i);
            if (a.bias) sum += load(a.bias + i);
            for (int k = 0; k < 9; ++k)
                if (rows[k]) sum += load(rows[k] + i) * load(a.weight + k * c + i);
            store(out + column * c + i, sum);
        }
        for (; i < c; ++i) {
            float sum = scalar(rows[4] + i);
            if (a.bias) sum += a.bias[i];
            for (int k = 0; k < 9; ++k)
                if (rows[k]) sum += scalar(rows[k] + i) * a.weight[k * c + i];
            put(out + column * c + i, sum);
        }
    }
}

template <typename T> void depthwise_weights_of(const Depthwise &a, int64_t task) {
    int64_t image = task / a.height, y = task % a.height, c = a.channels;
    const T *x = (const T *)a.x + image * a.height * a.width * c, *g = (const T *)a.grad_out + task * a.width * c;
    float *to = a.partial + task * 10 * c;
    int64_t i = 0;
    for (; i + W <= c; i += W) {
        vf sums[10] = {};
        for (int64_t column = 0; column < a.width; ++column) {
            vf grad = load(g + column * c + i);
            sums[9] += grad;
#pragma GCC unroll 9
            for (int k = 0; k < 9; ++k) {
                int64_t yy = y + k / 3 - 1, xx = column + k % 3 - 1;
                if (yy >= 0 && yy < a.height && xx >= 0 && xx < a.width) sums[k] += grad * load(x + (yy * a.width + xx) * c + i);
            }
        }
        for (int k = 0; k < 10; ++k) store(to + k * c + i, sums[k]);
    }
    for (; i < c; ++i) {
        float sums[10] = {};
        for (int64_t column = 0; column < a.width; ++column) {
            float grad = scalar(g + column * c + i);
            sums[9] += grad;
            for (int k = 0; k < 9; ++k) {
                int64_t yy = y + k / 3 - 1, xx = column + k % 3 - 1;
                if (yy >= 0 && yy < a.height && xx >= 0 && xx < a.width) sums[k] += grad * scalar(x + (yy * a.width + xx) * c + i);
            }
        }
        for (int k = 0; k < 10; ++k) to[k * c + i] = sums[k];
    }
}

// the element type is an argument outside, a template parameter inside
void window_forward(const WindowAttention &a, int64_t task, float *scratch) {
    a.bfloat16 ? window_forward_of<uint16_t>(a, task, scratch) : window_forward_of<float>(a, task, scratch);
}
void window_backward(const WindowAttention &a, int64_t task, float *scratch) {
    a.bfloat16 ? window_backward_of<uint16_t>(a, task, scratch) : window_backward_of<float>(a, task, scratch);
}
void channel_forward(const ChannelAttention &a, int64_t task, float *scratch) {
    a.bfloat16 ? channel_forward_of<uint16_t>(a, task, scratch) : channel_forward_of<float>(a, task, scratch);
}
void channel_backward(const ChannelAttention &a, int64_t task, float *scratch) {
    a.bfloat16 ? channel_backward_of<uint16_t>(a, task, scratch) : channel_backward_of<float>(a, task, scratch);
}
void depthwise(const Depthwise &a, int64_t task) { a.bfloat16 ? depthwise_of<uint16_t>(a, task) : depthwise_of<float>(a, task); }
void depthwise_weights(const Depthwise &a, int64_t task) {
    a.bfloat16 ? depthwise_weights_of<uint16_t>(a, task) : depthwise_weights_of<float>(a, task);
}

} // namespace

const Kernels *MT_JOIN(kernels_, MT_ISA)() {
    static const Kernels table = {window_scratch, window_forward, window_backward, channel_scratch,
                                  channel_forward, channel_backward, depthwise, depthwise_weights};
    return &table;
}
