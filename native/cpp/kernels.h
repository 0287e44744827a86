// The CPU kernels of the image tower, compiled once for each instruction set (kernels.cpp) and chosen when the program runs.
// All take rows of channels in f32 or bfloat16, compute in f32, and split into tasks that write to places of their own: results
// do not depend on the number of threads.
#pragma once
#include <cstddef>
#include <cstdint>

// Attention inside windows of a grid. `qkv` is [B, H, W, 3C]; the grid is thought padded up to whole windows with tokens whose
// key and value are `bias` [3C]. One task is one head of one window.
struct WindowAttention {
    int64_t batch, height, width, channels, heads, size;
    bool bfloat16;
    const void *qkv;
    const float *bias;
    void *out;            // forward: [B, H, W, C]
    const void *grad_out; // backward: [B, H, W, C]
    void *grad_qkv;       // [B, H, W, 3C]
    float *grad_bias;     // [B * windows, 3C], zeros before
};

// Attention over the channels of each group, scaled by tokens^-0.5. One task is one group of one image.
struct ChannelAttention {
    int64_t batch, tokens, channels, groups;
    bool bfloat16;
    const void *qkv;      // [B, N, 3C]
    void *out;            // forward: [B, N, C]
    const void *grad_out; // backward: [B, N, C]
    void *grad_qkv;       // [B, N, 3C]
};

// x + bias + 3x3 depthwise convolution of x, on [B, H, W, C]. One task is one row of one image.
struct Depthwise {
    int64_t batch, height, width, channels;
    bool bfloat16;
    const void *x;
    const float *weight; // [9, C]
    const float *bias;   // [C], or null for the gradient of x, which is the same with mirrored weights
    void *out;
    const void *grad_out;
    float *partial; // gradients of weight and bias by task: [B * H, 10, C]
};

struct Kernels {
    size_t (*window_scratch)(const WindowAttention &);
    void (*window_forward)(const WindowAttention &, int64_t task, float *scratch);
    void (*window_backward)(const WindowAttention &, int64_t task, float *scratch);
    size_t (*channel_scratch)(const ChannelAttention &);
    void (*channel_forward)(const ChannelAttention &, int64_t task, float *scratch);
    void (*channel_backward)(const ChannelAttention &, int64_t task, float *scratch);
    void (*depthwise)(const Depthwise &, int64_t task);
    void (*depthwise_weights)(const Depthwise &, int64_t task);
};

// The table of one instruction set.
const Kernels *kernels_generic();
#ifdef MT_X86
const Kernels *kernels_avx2();
const Kernels *kernels_avx512();
#endif
