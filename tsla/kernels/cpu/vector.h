// Vectors as wide as the compiler was asked for (AVX-512: 16 floats, AVX2: 8, else 4), and what moves tokens into them.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

namespace tsla {

#if defined(__AVX512F__)
constexpr int W = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int W = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int W = 4, REGISTERS = 32;
#else
constexpr int W = 4, REGISTERS = 16;
#endif

using vec = float __attribute__((vector_size(4 * W)));
using ivec = int32_t __attribute__((vector_size(4 * W)));

inline vec load(const float* p) {
    vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline void store(float* p, vec x) { std::memcpy(p, &x, sizeof x); }

inline vec all(float x) { return x - vec{}; }  // minus 0 changes no number, so this is a broadcast and nothing else

inline float total(vec x) {
    float sum = 0;
    for (int i = 0; i < W; i++) sum += x[i];
    return sum;
}

constexpr int padded(int width) { return (width + W - 1) / W * W; }

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87.
inline vec exp_negative(vec x) {
    vec clamped = x < -87.0f ? all(-87.0f) : x;
    vec turns = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    ivec whole;
    std::memcpy(&whole, &turns, sizeof whole);
    turns -= 12582912.0f;
    vec r = clamped - turns * 0.693359375f + turns * 2.12194440e-4f;  // ln 2 in two parts
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (whole - 0x4B400000 + 127) << 23;
    vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < -87.0f ? vec{} : p * scale;
}

// Transposes W x W floats held in W vectors: log2(W) rounds that swap blocks of half the size each time.
template <int H, std::size_t... L>
inline void swap_blocks(vec* x, std::index_sequence<L...>) {
    for (int i = 0; i < W; i++) {
        if (i & H) continue;
        vec a = x[i], b = x[i + H];
        x[i] = __builtin_shufflevector(a, b, ((L & H) ? W + L - H : L)...);
        x[i + H] = __builtin_shufflevector(a, b, ((L & H) ? W + L : L + H)...);
    }
    if constexpr (H > 1) swap_blocks<H / 2>(x, std::index_sequence<L...>{});
}

// The sums over the lanes of W vectors, as one vector; x is used up.
template <int H, std::size_t... L>
inline vec sum_lanes(vec* x, std::index_sequence<L...>) {
    for (int i = 0; i < H; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + H], ((L & H) ? W + L - H : L)...) +
               __builtin_shufflevector(x[i], x[i + H], ((L & H) ? W + L : L + H)...);
    if constexpr (H > 1) return sum_lanes<H / 2>(x, std::index_sequence<L...>{});
    return x[0];
}

// to (columns x ld_to) = from (rows x ld_from) transposed; rows and columns are multiples of W.
inline void transpose(const float* from, int ld_from, int rows, int columns, float* to, int ld_to) {
    for (int r = 0; r < rows; r += W)
        for (int c = 0; c < columns; c += W) {
            vec x[W];
            for (int i = 0; i < W; i++) x[i] = load(from + (r + i) * ld_from + c);
            swap_blocks<W / 2>(x, std::make_index_sequence<W>{});
            for (int i = 0; i < W; i++) store(to + (c + i) * ld_to + r, x[i]);
        }
}

inline float from_bf16(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline uint16_t to_bf16(float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);  // NaN stays NaN
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rows of a tensor in memory, float or bfloat16, `stride` elements apart.
struct Rows {
    char* data;
    int64_t stride;
    int width;
    bool half;

    char* row(int64_t t) const { return data + t * stride * (half ? 2 : 4); }

    // Rows begin ... begin + count, times `scale`, as `tokens` rows of `ld` floats; zeros fill what is beyond them, and
    // rows whose `mask` is 0.
    void get(int64_t begin, int count, int tokens, float scale, const uint8_t* mask, float* to, int ld) const {
        for (int t = 0; t < tokens; t++, to += ld) {
            if (t >= count || (mask && !mask[begin + t])) {
                std::memset(to, 0, 4 * ld);
                continue;
            }
            if (half) {
                const uint16_t* from = reinterpret_cast<const uint16_t*>(row(begin + t));
                for (int i = 0; i < width; i++) to[i] = from_bf16(from[i]) * scale;
            } else {
                const float* from = reinterpret_cast<const float*>(row(begin + t));
                for (int i = 0; i < width; i++) to[i] = from[i] * scale;
            }
            for (int i = width; i < ld; i++) to[i] = 0;
        }
    }

    // The other way: `count` rows of `ld` floats, times `scale`, to rows begin ... of the tensor.
    void put(int64_t begin, int count, float scale, const float* from, int ld) const {
        for (int t = 0; t < count; t++, from += ld) {
            if (half) {
                uint16_t* to = reinterpret_cast<uint16_t*>(row(begin + t));
                for (int i = 0; i < width; i++) to[i] = to_bf16(from[i] * scale);
            } else {
                float* to = reinterpret_cast<float*>(row(begin + t));
                for (int i = 0; i < width; i++) to[i] = from[i] * scale;
            }
        }
    }
};

}  // namespace tsla
