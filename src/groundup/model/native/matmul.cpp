// C = A B in fp32 on a CPU with AVX-512, for the three products of a linear layer: its output and both its gradients.
//
// B is packed, a block of K x N at a time, into panels of 64 columns that all threads read; a thread computes its own
// rows of C, 6 rows by 64 columns at a time in registers (Goto & van de Geijn 2008; BLIS, Van Zee & van de Geijn 2015).
// An element of C is summed over the same blocks of K, in the same order, whatever the number of threads is.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>

namespace {

constexpr long ROWS = 6, COLUMNS = 64;  // of the micro-kernel: 24 accumulators, 4 of B, 1 of A
constexpr long DEEP = 512;              // of K in a block: a panel of B is 128 KB
constexpr long WIDE = 2048;             // of N in a block: 4 MB of B are packed at a time
constexpr long TALL = 96;               // of M in a block: 192 KB of A, packed where its columns are dense

struct Matrix {
    const float* at;
    long rows, columns;  // strides, in elements
    const float* operator()(long i, long j) const { return at + i * rows + j * columns; }
};

inline long parts(long n, long most) { return (n + most - 1) / most; }
inline long even(long n, long most, long unit) {  // size of a block where all blocks are about as large
    return n ? parts(parts(n, parts(n, most)), unit) * unit : unit;
}

template <int M, int V>
inline __attribute__((always_inline)) void micro(Matrix a, const float* b, float* c, long stride, long k, bool add) {
    __m512 sum[M][V];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < V; j++) {
            sum[i][j] = _mm512_setzero_ps();
            _mm_prefetch((const char*)(c + i * stride + 16 * j), _MM_HINT_T0);  // needed when the sums are done
        }
    for (long p = 0; p < k; p++) {
        __m512 right[V];
        for (int j = 0; j < V; j++) right[j] = _mm512_loadu_ps(b + p * COLUMNS + 16 * j);
        for (int i = 0; i < M; i++) {
            __m512 left = _mm512_set1_ps(*a(i, p));
            for (int j = 0; j < V; j++) sum[i][j] = _mm512_fmadd_ps(left, right[j], sum[i][j]);
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < V; j++) {
            float* to = c + i * stride + 16 * j;
            _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum[i][j]) : sum[i][j]);
        }
}

template <int V> void rows_of(long m, Matrix a, const float* b, float* c, long stride, long k, bool add) {
    if (m == ROWS) return micro<ROWS, V>(a, b, c, stride, k, add);
    for (; m > 0; m--, a.at += a.rows, c += stride) micro<1, V>(a, b, c, stride, k, add);
}

inline void tile(long m, long n, Matrix a, const float* b, float* c, long stride, long k, bool add) {
    switch (n / 16) {
        case 4: return rows_of<4>(m, a, b, c, stride, k, add);
        case 3: return rows_of<3>(m, a, b, c, stride, k, add);
        case 2: return rows_of<2>(m, a, b, c, stride, k, add);
        case 1: return rows_of<1>(m, a, b, c, stride, k, add);
    }
}

// (k, n) -> (k, 64), the columns from n on not written: nothing reads them.
void pack_panel(Matrix b, long k, long n, float* out) {
    if (b.columns == 1) {
        for (long p = 0; p < k; p++)
            for (long j = 0; j < n; j += 16) _mm512_storeu_ps(out + p * COLUMNS + j, _mm512_loadu_ps(b(p, j)));
        return;
    }
    for (long p = 0; p < k; p += 16)  // a cache line of a column at a time
        for (long j = 0; j < n; j++)
            for (long i = p; i < std::min(p + 16, k); i++) out[i * COLUMNS + j] = *b(i, j);
}

// (m, k) with dense columns -> strips of 6 rows, (k, 6) each.
void pack_strips(Matrix a, long m, long k, float* out) {
    constexpr __mmask16 six = (1 << ROWS) - 1;
    for (long p = 0; p < k; p++) {
        long r = 0;
        for (; r + ROWS <= m; r += ROWS)
            _mm512_mask_storeu_ps(out + r * k + p * ROWS, six, _mm512_maskz_loadu_ps(six, a(r, p)));
        for (long i = r; i < m; i++) out[r * k + p * ROWS + i - r] = *a(i, p);
    }
}

}  // namespace

// shape: m, n, k; n a multiple of 16. strides: rows and columns of A and B, rows of C, whose columns are dense.
// add: C += A B
extern "C" void matmul(const long* shape, const long* strides, const float* a_at, const float* b_at, float* c, int add,
                       int threads) {
    long m = shape[0], n = shape[1], k = shape[2], stride = strides[4];
    Matrix a{a_at, strides[0], strides[1]}, b{b_at, strides[2], strides[3]};
    long deep = even(k, DEEP, 16), wide = even(n, WIDE, COLUMNS), strips = parts(m, ROWS);
    bool packed = a.rows == 1 && a.columns != 1;
    float* right = (float*)aligned_alloc(64, deep * wide * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        float* left = packed ? (float*)aligned_alloc(64, TALL * deep * sizeof(float)) : nullptr;
        long who = omp_get_thread_num(), all = omp_get_num_threads();
        long first = strips * who / all * ROWS, last = std::min(m, strips * (who + 1) / all * ROWS);
        for (long j0 = 0; j0 < n; j0 += wide)
            for (long p0 = 0; p0 < k; p0 += deep) {
                long columns = std::min(wide, n - j0), depth = std::min(deep, k - p0);
#pragma omp for schedule(static)
                for (long j = 0; j < columns; j += COLUMNS)
                    pack_panel({b(p0, j0 + j), b.rows, b.columns}, depth, std::min(COLUMNS, columns - j),
                               right + j * depth);
                for (long i0 = first; i0 < last; i0 += TALL) {
                    long rows = std::min(TALL, last - i0);
                    if (packed) pack_strips({a(i0, p0), a.rows, a.columns}, rows, depth, left);
                    for (long j = 0; j < columns; j += COLUMNS)
                        for (long r = 0; r < rows; r += ROWS) {
                            Matrix strip{a(i0 + r, p0), a.rows, a.columns};
                            if (packed) strip = {left + r * depth, 1, ROWS};
                            tile(std::min(ROWS, rows - r), std::min(COLUMNS, columns - j), strip, right + j * depth,
                                 c + (i0 + r) * stride + j0 + j, stride, depth, add || p0 > 0);
                        }
                }
#pragma omp barrier  // nobody packs the next block while another still reads this one
            }
        free(left);
    }
    free(right);
}
