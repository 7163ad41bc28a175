// Small dense products on rows that are padded to whole vectors.
#pragma once

#include "vector.hpp"

constexpr int ROWS = 6;
#if defined(__AVX512F__)
constexpr int VECTORS = 4;
#else
constexpr int VECTORS = 2;  // 6 x 2 sums, two vectors of b and one of a: 15 of 16 registers
#endif

template <int M, int N>
static inline void tile(int depth, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                        float* c, int64_t c_row, bool add) {
    Floats sums[M][N] = {};
    for (int k = 0; k < depth; k++) {
        Floats right[N];
        for (int j = 0; j < N; j++) right[j] = load(b + k * b_row + j * LANES);
        for (int i = 0; i < M; i++) {
            Floats left = spread(a[i * a_row + k * a_column]);
            for (int j = 0; j < N; j++) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float* to = c + i * c_row + j * LANES;
            store(to, add ? load(to) + sums[i][j] : sums[i][j]);
        }
}

template <int N>
static inline void strip(int rows, int depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                         int64_t b_row, float* c, int64_t c_row, bool add) {
    int i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        tile<ROWS, N>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
    a += i * a_row;
    c += i * c_row;
    switch (rows - i) {
        case 5: return tile<5, N>(depth, a, a_row, a_column, b, b_row, c, c_row, add);
        case 4: return tile<4, N>(depth, a, a_row, a_column, b, b_row, c, c_row, add);
        case 3: return tile<3, N>(depth, a, a_row, a_column, b, b_row, c, c_row, add);
        case 2: return tile<2, N>(depth, a, a_row, a_column, b, b_row, c, c_row, add);
        case 1: return tile<1, N>(depth, a, a_row, a_column, b, b_row, c, c_row, add);
    }
}

// c [rows, columns] = a [rows, depth] b [depth, columns], added to c where `add`. `columns` are whole vectors; a may lie
// in either order, b and c have rows of neighbouring floats.
static inline void multiply(int rows, int columns, int depth, const float* a, int64_t a_row, int64_t a_column,
                            const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
    int j = 0;
    for (; j + VECTORS * LANES <= columns; j += VECTORS * LANES)
        strip<VECTORS>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
    for (; j < columns; j += LANES) strip<1>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
}
