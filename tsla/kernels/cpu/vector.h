// Vectors as wide as the compiler was asked for (AVX-512: 16 floats, AVX2: 8, else 4), and what moves tokens into them.
#pragma once
#include <algorithm>
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
using uvec = uint32_t __attribute__((vector_size(4 * W)));
using hvec = uint16_t __attribute__((vector_size(2 * W)));

inline vec load(const float* p) {
    vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline void store(float* p, vec x) {
    std::memcpy(p, &x, sizeof x);
}

inline vec all(float x) {
    return x - vec{};
}  // minus 0 changes no number, so this is a broadcast and nothing else

inline vec load_some(const float* p, int count) {
    vec x{};
    std::memcpy(&x, p, count * sizeof(float));
    return x;
}

// 0, 1, 2 ... W - 1.
inline ivec lanes() {
    ivec x;
    for (int i = 0; i < W; i++) x[i] = i;
    return x;
}

constexpr int padded(int width) {
    return (width + W - 1) / W * W;
}

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

template <int H, std::size_t... L>
inline vec sum_lanes(vec* x, std::index_sequence<L...>) {
    for (int i = 0; i < H; i++)
        x[i] = __builtin_shufflevector(x[i], x[i + H], ((L & H) ? W + L - H : L)...) +
               __builtin_shufflevector(x[i], x[i + H], ((L & H) ? W + L : L + H)...);
    if constexpr (H > 1) return sum_lanes<H / 2>(x, std::index_sequence<L...>{});
    return x[0];
}

// The sums over the lanes of W vectors, which are used up, as one vector.
inline vec sum_of_rows(vec* x) {
    return sum_lanes<W / 2>(x, std::make_index_sequence<W>{});
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

// One vector of the first `count` elements at p, float or bfloat16, and back; zeros fill the rest.
inline vec load_as(const char* p, bool half, int count) {
    if (!half)
        return count == W ? load(reinterpret_cast<const float*>(p))
                          : load_some(reinterpret_cast<const float*>(p), count);
    hvec bits{};
    if (count == W) std::memcpy(&bits, p, sizeof bits);
    else std::memcpy(&bits, p, 2 * count);
    uvec wide = __builtin_convertvector(bits, uvec) << 16;
    vec x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

inline void store_as(char* p, bool half, int count, vec x) {
    if (!half) {
        if (count == W) store(reinterpret_cast<float*>(p), x);
        else std::memcpy(p, &x, 4 * count);
        return;
    }
    uvec bits;
    std::memcpy(&bits, &x, sizeof bits);
    uvec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, ties to even
    uvec nan = bits >> 16 | 0x40;                             // which stays one
    hvec out = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, hvec);
    if (count == W) std::memcpy(p, &out, sizeof out);
    else std::memcpy(p, &out, 2 * count);
}

// Rows of a tensor in memory, float or bfloat16, `stride` elements apart.
struct Rows {
    char* data;
    int64_t stride;
    int width;
    bool half;

    int size() const { return half ? 2 : 4; }
    char* row(int64_t t) const { return data + t * stride * size(); }

    // Rows begin ... begin + count, times `scale`, as `tokens` rows of `ld` floats, the width rounded up; zeros fill
    // what is beyond them, and rows whose `mask` is 0.
    void get(int64_t begin, int count, int tokens, float scale, const uint8_t* mask, float* to, int ld) const {
        for (int t = 0; t < tokens; t++, to += ld) {
            if (t >= count || (mask && !mask[begin + t])) {
                std::memset(to, 0, 4 * ld);
                continue;
            }
            const char* from = row(begin + t);
            for (int i = 0; i < ld; i += W)
                store(to + i, load_as(from + i * size(), half, std::min(W, width - i)) * scale);
        }
    }

    // The other way: `count` rows of `ld` floats, times `scale`, to rows begin ... of the tensor.
    void put(int64_t begin, int count, float scale, const float* from, int ld) const {
        for (int t = 0; t < count; t++, from += ld)
            for (int i = 0; i < width; i += W)
                store_as(row(begin + t) + i * size(), half, std::min(W, width - i), load(from + i) * scale);
    }
};

}  // namespace tsla
