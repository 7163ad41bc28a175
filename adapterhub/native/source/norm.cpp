// Root mean square normalisation (Zhang and Sennrich 2019), as transformers computes it: in 16 bits the normalised
// row is rounded before it meets the weight.

#include <cmath>

#include "vector.hpp"

namespace {

// Less than this many numbers is done before a second thread has woken.
constexpr int64_t WORTH_THREADS = 1 << 14;

template <class T>
inline Floats rounded(Floats x) {
    if (sizeof(T) == sizeof(float)) return x;
    bfloat16 narrow[LANES];
    store(narrow, x);
    return load(narrow);
}

inline float rounded_one(const float*, float x) { return x; }

inline float rounded_one(const bfloat16*, float x) {
    bfloat16 narrow;
    store_one(&narrow, x);
    return load_one(&narrow);
}

template <class T>
float square_sum(const T* x, int width) {
    Floats sums[2] = {};
    int i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES)
        for (int j = 0; j < 2; j++) {
            Floats v = load(x + i + j * LANES);
            sums[j] += v * v;
        }
    float total = sum_of(sums[0] + sums[1]);
    for (; i < width; i++) total += load_one(x + i) * load_one(x + i);
    return total;
}

template <class T>
void normalise(const T* __restrict x, const T* __restrict weight, T* __restrict y, int width, float eps) {
    float scale = 1.0f / sqrtf(square_sum(x, width) / width + eps);
    int i = 0;
    for (; i + LANES <= width; i += LANES) store(y + i, rounded<T>(load(x + i) * scale) * load(weight + i));
    for (; i < width; i++) store_one(y + i, rounded_one(x, load_one(x + i) * scale) * load_one(weight + i));
}

template <class T>
void add(T* __restrict x, const T* __restrict delta, int width) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) store(x + i, load(x + i) + load(delta + i));
    for (; i < width; i++) store_one(x + i, load_one(x + i) + load_one(delta + i));
}

template <class T>
void forward(T* x, const T* delta, const T* weight, T* y, int64_t rows, int width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        if (delta) add(x + r * width, delta + r * width, width);
        normalise(x + r * width, weight, y + r * width, width, eps);
    }
}

// dx += s (w dy) - x s^3 / n sum(w dy x), with s = 1 / sqrt(mean(x^2) + eps).
template <class T>
void backward_row(const T* __restrict dy, const T* __restrict x, const T* __restrict weight, T* __restrict dx,
                  int width, float eps) {
    Floats squares = {}, products = {};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Floats v = load(x + i);
        squares += v * v;
        products += v * (load(dy + i) * load(weight + i));
    }
    float square = sum_of(squares), product = sum_of(products);
    for (; i < width; i++) {
        square += load_one(x + i) * load_one(x + i);
        product += load_one(x + i) * load_one(dy + i) * load_one(weight + i);
    }
    float scale = 1.0f / sqrtf(square / width + eps), back = scale * scale * scale * product / width;
    for (i = 0; i + LANES <= width; i += LANES)
        store(dx + i, load(dx + i) + (load(dy + i) * load(weight + i) * scale - load(x + i) * back));
    for (; i < width; i++)
        store_one(dx + i, load_one(dx + i) + load_one(dy + i) * load_one(weight + i) * scale - load_one(x + i) * back);
}

template <class T>
void backward(const T* dy, const T* x, const T* weight, T* dx, int64_t rows, int width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) backward_row(dy + r * width, x + r * width, weight, dx + r * width, width, eps);
}

}  // namespace

#define NORM(T, NAME)                                                                                                \
    EXPORT void rms_norm_forward_##NAME(T* x, const T* delta, const T* weight, T* y, int64_t rows, int width,        \
                                        float eps, int threads) {                                                    \
        forward(x, delta, weight, y, rows, width, eps, threads);                                                     \
    }                                                                                                                \
    EXPORT void rms_norm_backward_##NAME(const T* dy, const T* x, const T* weight, T* dx, int64_t rows, int width,   \
                                         float eps, int threads) {                                                   \
        backward(dy, x, weight, dx, rows, width, eps, threads);                                                      \
    }

NORM(float, float32)
NORM(bfloat16, bfloat16)
