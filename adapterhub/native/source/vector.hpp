// Vectors of floats as wide as the machine's registers, in GCC's portable vector extensions; storage in float or bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// What Python sees; everything else stays inside the library.
#define EXPORT extern "C" __attribute__((visibility("default")))

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

// Aligned like single floats: rows of a tensor start anywhere.
typedef float Floats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

static inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static inline Floats load(const float* p) { return *(const Floats*)p; }
static inline void store(float* p, Floats x) { *(Floats*)p = x; }

static inline Floats load(const bfloat16* p) {
    Ints wide = __builtin_convertvector(*(const Halves*)p, Ints) << 16;
    return (Floats)wide;
}

// Rounds to nearest, ties to even; NaN stays NaN.
static inline void store(bfloat16* p, Floats x) {
    Ints bits = (Ints)x;
    Ints rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
    rounded = x != x ? Ints{} + 0x7fc0 : rounded;
    *(Halves*)p = __builtin_convertvector(rounded, Halves);
}

static inline float load_one(const float* p) { return *p; }
static inline void store_one(float* p, float x) { *p = x; }

static inline float load_one(const bfloat16* p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline void store_one(bfloat16* p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    p->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline Floats spread(float x) { return x - Floats{}; }  // one broadcast; 0 + x would turn -0 into 0, and cost
static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

#if defined(__AVX512F__)
constexpr Ints COUNTED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Ints COUNTED = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

static inline float sum_of(Floats x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

static inline float largest_of(Floats x) {
    float found = x[0];
    for (int i = 1; i < LANES; i++) found = x[i] > found ? x[i] : found;
    return found;
}

// e^x to about 1e-7 relative (Cephes' polynomial on [-ln2/2, ln2/2], times a power of two); 0 below -87.3, NaN stays NaN.
static inline Floats exponential(Floats x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    Floats in = x > 88.3f ? spread(88.3f) : x;
    Floats shifted = in * 1.44269504088896341f + magic;
    Floats n = shifted - magic;
    Floats r = in - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Floats p = spread(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints exponent = ((Ints)shifted) << 23;  // magic's own bits fall out at the top
    Floats y = (Floats)((Ints)p + exponent);
    y = in < -87.3f ? Floats{} : y;
    return x != x ? x : y;
}

// A row of a tensor as floats in [0, n), zeros up to its padded length.
template <class T>
static inline void read_row(float* __restrict to, const T* __restrict from, int n) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
    if (i < n) {
        store(to + i, Floats{});
        for (; i < n; i++) to[i] = load_one(from + i);
    }
}

template <class T>
static inline void write_row(T* __restrict to, const float* __restrict from, int n, float times) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i) * times);
    for (; i < n; i++) store_one(to + i, from[i] * times);
}
