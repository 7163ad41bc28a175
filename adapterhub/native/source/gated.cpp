// The gated activation silu(gate) * up (Shazeer 2020) of rows that hold gate and up side by side.

#include "vector.hpp"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 12;  // exponentials cost more than sums

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

// What one vector of a row becomes, from `gate` and `up`, and on the way back from the gradient `dact` of the product.
inline Floats activated(Floats gate, Floats up) { return gate * sigmoid(gate) * up; }

struct Back {
    Floats dgate, dup, act;
};

inline Back back(Floats gate, Floats up, Floats dact) {
    Floats s = sigmoid(gate), silu = gate * s;
    return {dact * up * (s + silu * (1.0f - s)), dact * silu, silu * up};
}

// The last numbers of a row, fewer than a vector, as a vector with zeros behind them.
template <class T>
inline Floats load_some(const T* from, int n) {
    Floats x = {};
    for (int i = 0; i < n; i++) x[i] = load_one(from + i);
    return x;
}

template <class T>
inline void store_some(T* to, Floats x, int n) {
    for (int i = 0; i < n; i++) store_one(to + i, x[i]);
}

template <class T>
void forward(const T* gate_up, T* act, int64_t rows, int width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const T *gate = gate_up + r * 2 * width, *up = gate + width;
        T* to = act + r * width;
        int i = 0;
        for (; i + LANES <= width; i += LANES) store(to + i, activated(load(gate + i), load(up + i)));
        if (int n = width - i) store_some(to + i, activated(load_some(gate + i, n), load_some(up + i, n)), n);
    }
}

template <class T>
void backward(const T* gate_up, const T* dact, T* dgate_up, T* act, int64_t rows, int width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const T *gate = gate_up + r * 2 * width, *up = gate + width, *d = dact + r * width;
        T *dgate = dgate_up + r * 2 * width, *dup = dgate + width, *to = act + r * width;
        int i = 0;
        for (; i + LANES <= width; i += LANES) {
            Back found = back(load(gate + i), load(up + i), load(d + i));
            store(dgate + i, found.dgate);
            store(dup + i, found.dup);
            store(to + i, found.act);
        }
        if (int n = width - i) {
            Back found = back(load_some(gate + i, n), load_some(up + i, n), load_some(d + i, n));
            store_some(dgate + i, found.dgate, n);
            store_some(dup + i, found.dup, n);
            store_some(to + i, found.act, n);
        }
    }
}

}  // namespace

#define GATED(T, NAME)                                                                                          \
    EXPORT void swiglu_forward_##NAME(const T* gate_up, T* act, int64_t rows, int width, int threads) {         \
        forward(gate_up, act, rows, width, threads);                                                            \
    }                                                                                                           \
    EXPORT void swiglu_backward_##NAME(const T* gate_up, const T* dact, T* dgate_up, T* act, int64_t rows,      \
                                       int width, int threads) {                                                \
        backward(gate_up, dact, dgate_up, act, rows, width, threads);                                           \
    }

GATED(float, float32)
GATED(bfloat16, bfloat16)
