// The low-rank updates of single rows, each by the adapter of its own: y += (x A^T) B, read where the matrices lie.
//
// Rows are given slot by slot. First all rank activations z, then all updates: an element of y is written by one thread,
// and no product ever meets two adapters.

#include "vector.hpp"

// Matrices of adapters in slots: `a` [slots, ranks, in]; for each layer `b` [slots, high - low, out] meets ranks
// [low, high) and adds to columns [first, first + out) of y.
struct Slab {
    const float* a;
    const float* const* b;
    const int32_t *low, *high, *first, *out;
    int32_t layers, ranks, in, columns;
};

struct Rows {
    const int32_t *slots, *starts, *rows;  // [count], [count + 1] into rows
    int32_t count;
};

namespace {

constexpr int RANKS = 4, CHUNK = 512;  // ranks of one item of the first half, columns of one of the second

template <int M>
void activations(const float* const* x, const float* a, int in, int ranks, float* const* z) {
    for (int r = 0; r < ranks; r += 2) {
        bool two = r + 1 < ranks;
        const float *one = a + (int64_t)r * in, *other = two ? one + in : one;
        Floats sums[M][2] = {};
        int i = 0;
        for (; i + LANES <= in; i += LANES) {
            Floats p = load(one + i), q = load(other + i);
            for (int m = 0; m < M; m++) {
                Floats v = load(x[m] + i);
                sums[m][0] += v * p;
                sums[m][1] += v * q;
            }
        }
        for (int m = 0; m < M; m++) {
            float p = sum_of(sums[m][0]), q = sum_of(sums[m][1]);
            for (int k = i; k < in; k++) {
                p += x[m][k] * one[k];
                q += x[m][k] * other[k];
            }
            z[m][r] = p;
            if (two) z[m][r + 1] = q;
        }
    }
}

// y[m] += z[m] [4] times four rows of b: few enough to be read as streams.
template <int M>
void four(float* const* y, const float* const* z, const float* b, int64_t b_row, int columns) {
    int i = 0;
    for (; i + LANES <= columns; i += LANES) {
        Floats right[4] = {load(b + i), load(b + b_row + i), load(b + 2 * b_row + i), load(b + 3 * b_row + i)};
        for (int m = 0; m < M; m++) {
            Floats sum = load(y[m] + i);
            for (int r = 0; r < 4; r++) sum += spread(z[m][r]) * right[r];
            store(y[m] + i, sum);
        }
    }
    for (; i < columns; i++)
        for (int m = 0; m < M; m++)
            for (int r = 0; r < 4; r++) y[m][i] += z[m][r] * b[r * b_row + i];
}

void single(float* y, float z, const float* b, int columns) {
    for (int i = 0; i < columns; i++) y[i] += z * b[i];
}

template <int M>
void update(float* const* y, const float* const* z, const float* b, int64_t b_row, int ranks, int columns) {
    const float* now[M];
    for (int m = 0; m < M; m++) now[m] = z[m];
    int r = 0;
    for (; r + 4 <= ranks; r += 4) {
        four<M>(y, now, b + r * b_row, b_row, columns);
        for (int m = 0; m < M; m++) now[m] += 4;
    }
    for (; r < ranks; r++)
        for (int m = 0; m < M; m++) single(y[m], z[m][r], b + r * b_row, columns);
}

// Two rows at a time share what is read.
template <class One, class Two>
void in_pairs(int from, int to, One one, Two two) {
    int i = from;
    for (; i + 2 <= to; i += 2) two(i);
    if (i < to) one(i);
}

}  // namespace

EXPORT void lora_updates_float32(const float* x, float* y, float* z, const Slab* slab, const Rows* rows, int threads) {
    int blocks = (slab->ranks + RANKS - 1) / RANKS, chunks = 0;
    for (int l = 0; l < slab->layers; l++) chunks += (slab->out[l] + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 2)
        for (int item = 0; item < rows->count * blocks; item++) {
            int group = item / blocks, r = item % blocks * RANKS;
            int here = slab->ranks - r < RANKS ? slab->ranks - r : RANKS;
            const float* a = slab->a + ((int64_t)rows->slots[group] * slab->ranks + r) * slab->in;
            auto of_x = [&](int i) { return x + (int64_t)rows->rows[i] * slab->in; };
            auto of_z = [&](int i) { return z + (int64_t)i * slab->ranks + r; };
            in_pairs(
                rows->starts[group], rows->starts[group + 1],
                [&](int i) {
                    const float* from[] = {of_x(i)};
                    float* to[] = {of_z(i)};
                    activations<1>(from, a, slab->in, here, to);
                },
                [&](int i) {
                    const float* from[] = {of_x(i), of_x(i + 1)};
                    float* to[] = {of_z(i), of_z(i + 1)};
                    activations<2>(from, a, slab->in, here, to);
                });
        }
#pragma omp for schedule(dynamic, 2)
        for (int item = 0; item < rows->count * chunks; item++) {
            int group = item / chunks, chunk = item % chunks, l = 0;
            for (; chunk >= (slab->out[l] + CHUNK - 1) / CHUNK; l++) chunk -= (slab->out[l] + CHUNK - 1) / CHUNK;
            int ranks = slab->high[l] - slab->low[l], out = slab->out[l], column = chunk * CHUNK;
            int here = out - column < CHUNK ? out - column : CHUNK;
            const float* b = slab->b[l] + (int64_t)rows->slots[group] * ranks * out + column;
            auto of_y = [&](int i) { return y + (int64_t)rows->rows[i] * slab->columns + slab->first[l] + column; };
            auto of_z = [&](int i) { return (const float*)z + (int64_t)i * slab->ranks + slab->low[l]; };
            in_pairs(
                rows->starts[group], rows->starts[group + 1],
                [&](int i) {
                    float* to[] = {of_y(i)};
                    const float* from[] = {of_z(i)};
                    update<1>(to, from, b, out, ranks, here);
                },
                [&](int i) {
                    float* to[] = {of_y(i), of_y(i + 1)};
                    const float* from[] = {of_z(i), of_z(i + 1)};
                    update<2>(to, from, b, out, ranks, here);
                });
        }
    }
}
