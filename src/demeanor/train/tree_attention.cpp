// Attention over rows of prefix trees on CPUs with matrix tiles (AMX): bfloat16 in and out, sums in float32.
//
// Places lie depth first, so query q sees key k exactly when k <= q < stop[k], and a block of keys is seen by one run
// of queries, from its first key to its largest stop: whole blocks outside are never touched, and no mask is stored.
// A thread takes one tree and one key-value head at a time. The softmax of 32 queries is made over all their keys at
// once (so no rescaling); the backward pass recomputes the weights from the log-sum-exp, as FlashAttention does
// (Dao 2023), transposed: keys are the rows, because then each product finds its operands as it needs them.
//
// Built by `native.py`, which checks the instructions and the shapes. Heads are multiples of 32 wide.

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

typedef uint16_t bf16;  // its bits

constexpr int64_t EDGE = 32;    // places on a side of a block: two tiles
constexpr int64_t PANEL = 128;  // keys whose score gradients are kept until the queries' gradient takes them
constexpr float LOG2E = 1.44269504088896340736f;
constexpr float NEVER = -1e30f;  // the score of a key that is not seen

struct alignas(64) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles as this file uses them, and as they were before when it is done: other libraries may count on that.
class Tiles {
 public:
  Tiles() {
    _tile_storeconfig(&before_);
    const Config ours;
    _tile_loadconfig(&ours);
  }
  ~Tiles() {
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }

 private:
  Config before_;
};

// Pieces of one block of memory, each on a boundary of 64 bytes. With no block behind it, it only counts.
class Scratch {
 public:
  explicit Scratch(char* memory = nullptr) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    char* piece = memory_ + used;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  size_t used = 0;

 private:
  char* memory_;
};

struct Heads {  // [heads, tokens, width], the last dimension without gaps
  bf16* data;
  int64_t head, token;  // strides in elements
  bf16* at(int64_t h, int64_t t) const { return data + h * head + t * token; }
};

struct Problem {
  Heads q, k, v, out, grad, dq, dk, dv;
  float* lse;  // [heads, length], natural logarithm
  const int32_t* stops;
  const int64_t* trees;  // [number of trees, 2]: where each starts and ends
  int64_t num_trees, heads, kv_heads, width, length;
  float scale;
  int threads;
};

inline int64_t whole(int64_t n) { return (n + EDGE - 1) / EDGE * EDGE; }

inline __m512 widen(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// 2^x to about 2e-6 of its value, for x <= 0; below -200 it is 0
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-200.f));
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.3333558e-3f);  // (ln 2)^i / i!, from i = 5 down
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, n);
}

inline void transpose(__m512i r[16]) {  // 16 x 16 numbers of 32 bits
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i x = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), y = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    const __m512i z = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i w = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    t[i] = _mm512_shuffle_i32x4(x, z, 0x88);
    t[8 + i] = _mm512_shuffle_i32x4(x, z, 0xdd);
    t[4 + i] = _mm512_shuffle_i32x4(y, w, 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(y, w, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// `size` rows, then rows of zeros up to a whole block: to[whole(size)][width]
void copy_rows(const Heads& from, int64_t head, int64_t start, int64_t size, int64_t width, bf16* to) {
  for (int64_t t = 0; t < size; ++t) std::memcpy(to + t * width, from.at(head, start + t), width * sizeof(bf16));
  std::memset(to + size * width, 0, (whole(size) - size) * width * sizeof(bf16));
}

// to[rows / 16][width / 2][16]: the right operand of a product along the width, one column for each row given
void pack_columns(const bf16* rows, int64_t num_rows, int64_t width, uint32_t* to) {
  __m512i r[16];
  for (int64_t t = 0; t < num_rows; t += 16)
    for (int64_t d = 0; d < width; d += 32, to += 256) {
      for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(rows + (t + i) * width + d);
      transpose(r);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 16, r[i]);
    }
}

// two rows of 16 numbers as one of pairs
inline __m512i pairs(__m256i one, __m256i two) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(one), _mm512_slli_epi32(_mm512_cvtepu16_epi32(two), 16));
}

// to[rows / 2][width]: the right operand of a product along the rows
void pack_rows(const bf16* rows, int64_t num_rows, int64_t width, uint32_t* to) {
  for (int64_t t = 0; t < num_rows; t += 2)
    for (int64_t d = 0; d < width; d += 16, to += 16) {
      const bf16* p = rows + t * width + d;
      const __m256i one = _mm256_loadu_si256((const __m256i*)p), two = _mm256_loadu_si256((const __m256i*)(p + width));
      _mm512_storeu_si512(to, pairs(one, two));
    }
}

// to[width][rows], from what `pack_columns` made
void pack_transposed(const uint32_t* columns, int64_t num_rows, int64_t width, bf16* to) {
  for (int64_t t = 0; t < num_rows; t += 16)
    for (int64_t d = 0; d < width; d += 2, columns += 16) {
      const __m512i both = _mm512_loadu_si512(columns);
      _mm256_storeu_si256((__m256i*)(to + d * num_rows + t), _mm512_cvtepi32_epi16(both));
      _mm256_storeu_si256((__m256i*)(to + (d + 1) * num_rows + t), _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
    }
}

// Tiles 0 to 3 hold a 32 x 32 piece of a sum of products.
inline void zero() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void load(const float* c, int64_t stride) {
  _tile_loadd(0, c, stride * 4);
  _tile_loadd(1, c + 16, stride * 4);
  _tile_loadd(2, c + 16 * stride, stride * 4);
  _tile_loadd(3, c + 16 * stride + 16, stride * 4);
}

inline void store(float* c, int64_t stride) {
  _tile_stored(0, c, stride * 4);
  _tile_stored(1, c + 16, stride * 4);
  _tile_stored(2, c + 16 * stride, stride * 4);
  _tile_stored(3, c + 16 * stride + 16, stride * 4);
}

// add a[32][32] b[32][32]; strides in elements, those of b in pairs
inline void add(const bf16* a, int64_t a_stride, const uint32_t* b0, const uint32_t* b1, int64_t b_stride) {
  _tile_loadd(4, a, a_stride * 2);
  _tile_loadd(6, b0, b_stride * 4);
  _tile_loadd(7, b1, b_stride * 4);
  _tile_loadd(5, a + 16 * a_stride, a_stride * 2);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// c[32][32] = a b along the width: a[32][width], and columns from `pack_columns` from their first on
inline void dot(const bf16* a, const uint32_t* columns, int64_t width, float* c, int64_t stride) {
  zero();
  for (int64_t d = 0; d < width; d += 32)
    add(a + d, width, columns + d / 2 * 16, columns + (width / 2 + d / 2) * 16, 16);
  store(c, stride);
}

struct Reach {  // of a tree's keys, counted from its first place
  std::vector<int32_t> stop;  // [whole(size)]; 0 for what is no key
  std::vector<int32_t> least, most;  // [blocks]: of the stops of each block
  Reach(const Problem& p, int64_t start, int64_t size) : stop(whole(size), 0) {
    for (int64_t t = 0; t < size; ++t) stop[t] = p.stops[start + t] - start;
    for (size_t b = 0; b < stop.size(); b += EDGE) {
      least.push_back(*std::min_element(&stop[b], &stop[b] + EDGE));
      most.push_back(*std::max_element(&stop[b], &stop[b] + EDGE));
    }
  }
  bool none(int64_t key, int64_t query) const { return query >= most[key / EDGE] || key > query + EDGE - 1; }
  bool all(int64_t key, int64_t query) const { return query + EDGE <= least[key / EDGE] && key + EDGE - 1 <= query; }
};

const __m512i LANES() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

struct Forward {
  static size_t layout(Scratch& s, int64_t size, int64_t width, Forward& f) {
    const int64_t n = whole(size);
    f.rows = s.take<bf16>(n * width);
    f.keys = s.take<uint32_t>(n * width / 2);
    f.values = s.take<uint32_t>(n * width / 2);
    f.scores = s.take<float>(EDGE * n);
    f.weights = s.take<bf16>(EDGE * n);
    f.sums = s.take<float>(EDGE * width);
    return s.used;
  }
  bf16 *rows, *weights;
  uint32_t *keys, *values;
  float *scores, *sums;

  void run(const Problem& p, int64_t tree, int64_t kv) {
    const int64_t start = p.trees[2 * tree], size = p.trees[2 * tree + 1] - start, n = whole(size), w = p.width;
    const Reach reach(p, start, size);
    copy_rows(p.k, kv, start, size, w, rows);
    pack_columns(rows, n, w, keys);
    copy_rows(p.v, kv, start, size, w, rows);
    pack_rows(rows, n, w, values);
    const int64_t group = p.heads / p.kv_heads;
    std::vector<int64_t> seen;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      copy_rows(p.q, h, start, size, w, rows);
      for (int64_t q = 0; q < n; q += EDGE) {
        seen.clear();
        for (int64_t k = 0; k <= q; k += EDGE)
          if (!reach.none(k, q)) seen.push_back(k);
        const int64_t wide = seen.size() * EDGE;
        for (size_t j = 0; j < seen.size(); ++j) {
          dot(rows + q * w, keys + seen[j] * w / 2, w, scores + j * EDGE, wide);
          if (!reach.all(seen[j], q)) hide(reach, seen[j], q, scores + j * EDGE, wide);
        }
        const int64_t count = std::min(EDGE, size - q);
        float scale_out[EDGE];
        for (int64_t r = 0; r < EDGE; ++r)
          scale_out[r] = softmax(scores + r * wide, weights + r * wide, wide, p.scale,
                                 r < count ? p.lse + h * p.length + start + q + r : nullptr);
        for (int64_t d = 0; d < w; d += EDGE) {
          zero();
          for (size_t j = 0; j < seen.size(); ++j) {
            const uint32_t* b = values + seen[j] / 2 * w + d;
            add(weights + j * EDGE, wide, b, b + 16, w);
          }
          store(sums + d, w);
        }
        for (int64_t r = 0; r < count; ++r) {
          const __m512 by = _mm512_set1_ps(scale_out[r]);
          bf16* to = p.out.at(h, start + q + r);
          for (int64_t d = 0; d < w; d += 16)
            _mm256_storeu_si256((__m256i*)(to + d), narrow(_mm512_mul_ps(by, _mm512_loadu_ps(sums + r * w + d))));
        }
      }
    }
  }

  static void hide(const Reach& reach, int64_t key, int64_t query, float* scores, int64_t stride) {
    for (int64_t half = 0; half < EDGE; half += 16) {
      const __m512i k = _mm512_add_epi32(LANES(), _mm512_set1_epi32(key + half));
      const __m512i stop = _mm512_loadu_si512(&reach.stop[key + half]);
      for (int64_t r = 0; r < EDGE; ++r) {
        const __m512i q = _mm512_set1_epi32(query + r);
        const __mmask16 seen = _mm512_cmple_epi32_mask(k, q) & _mm512_cmplt_epi32_mask(q, stop);
        float* s = scores + r * stride + half;
        _mm512_storeu_ps(s, _mm512_mask_mov_ps(_mm512_set1_ps(NEVER), seen, _mm512_loadu_ps(s)));
      }
    }
  }

  // weights before they are divided by their sum; returns what to multiply by instead
  static float softmax(const float* scores, bf16* weights, int64_t n, float scale, float* lse) {
    __m512 top = _mm512_loadu_ps(scores);
    for (int64_t i = 16; i < n; i += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + i));
    const float most = _mm512_reduce_max_ps(top);
    const __m512 by = _mm512_set1_ps(scale * LOG2E), less = _mm512_set1_ps(most);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
      const __m512 x = exp2(_mm512_mul_ps(by, _mm512_sub_ps(_mm512_loadu_ps(scores + i), less)));
      sum = _mm512_add_ps(sum, x);
      _mm256_storeu_si256((__m256i*)(weights + i), narrow(x));
    }
    const float all = _mm512_reduce_add_ps(sum);
    if (lse) *lse = scale * most + std::log(all);
    return 1.f / all;
  }
};

struct Backward {
  static size_t layout(Scratch& s, int64_t size, int64_t width, Backward& b) {
    const int64_t n = whole(size);
    b.keys = s.take<bf16>(n * width);
    b.values = s.take<bf16>(n * width);
    b.rows = s.take<bf16>(n * width);
    b.keys_across = s.take<bf16>(n * width);
    b.queries = s.take<uint32_t>(n * width / 2);
    b.queries_paired = s.take<uint32_t>(n * width / 2);
    b.grads = s.take<uint32_t>(n * width / 2);
    b.grads_paired = s.take<uint32_t>(n * width / 2);
    b.dk = s.take<float>(n * width);
    b.dv = s.take<float>(n * width);
    b.dq = s.take<float>(n * width);
    b.lse = s.take<float>(n);
    b.delta = s.take<float>(n);
    b.weights = s.take<bf16>(EDGE * n);
    b.ds = s.take<bf16>(EDGE * n);
    b.ds_paired = s.take<uint32_t>(PANEL / 2 * n);
    b.scores = s.take<float>(EDGE * EDGE);
    b.dp = s.take<float>(EDGE * EDGE);
    return s.used;
  }
  bf16 *keys, *values, *rows, *keys_across, *weights, *ds;
  uint32_t *queries, *queries_paired, *grads, *grads_paired, *ds_paired;
  float *dk, *dv, *dq, *lse, *delta, *scores, *dp;

  void run(const Problem& p, int64_t tree, int64_t kv) {
    const int64_t start = p.trees[2 * tree], size = p.trees[2 * tree + 1] - start, n = whole(size), w = p.width;
    const Reach reach(p, start, size);
    copy_rows(p.k, kv, start, size, w, keys);
    copy_rows(p.v, kv, start, size, w, values);
    pack_columns(keys, n, w, queries);
    pack_transposed(queries, n, w, keys_across);
    std::memset(dk, 0, n * w * sizeof(float));
    std::memset(dv, 0, n * w * sizeof(float));
    const int64_t group = p.heads / p.kv_heads;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      take_head(p, h, start, size);
      for (int64_t panel = 0; panel < n; panel += PANEL) {
        const int64_t end = std::min(panel + PANEL, n);
        for (int64_t k = panel; k < end; k += EDGE) {
          for (int64_t q = k; !reach.none(k, q); q += EDGE) {
            dot(keys + k * w, queries + q * w / 2, w, scores, EDGE);
            dot(values + k * w, grads + q * w / 2, w, dp, EDGE);
            differentiate(reach, k, q, n, p.scale, ds_paired + (k - panel) / 2 * n);
          }
          collect(reach, k, weights, grads_paired, n, w, dv + k * w);
          collect(reach, k, ds, queries_paired, n, w, dk + k * w);
        }
        for (int64_t q = panel; q < n; q += EDGE) {
          for (int64_t d = 0; d < w; d += EDGE) {
            load(dq + d * n + q, n);
            for (int64_t k = panel; k < end; k += EDGE) {
              if (reach.none(k, q)) continue;
              const uint32_t* b = ds_paired + (k - panel) / 2 * n + q;
              add(keys_across + d * n + k, n, b, b + 16, n);
            }
            store(dq + d * n + q, n);
          }
        }
      }
      give_queries(p, h, start, size);
    }
    for (int64_t t = 0; t < size; ++t) {
      bf16 *to_k = p.dk.at(kv, start + t), *to_v = p.dv.at(kv, start + t);
      for (int64_t d = 0; d < w; d += 16) {
        _mm256_storeu_si256((__m256i*)(to_k + d), narrow(_mm512_loadu_ps(dk + t * w + d)));
        _mm256_storeu_si256((__m256i*)(to_v + d), narrow(_mm512_loadu_ps(dv + t * w + d)));
      }
    }
  }

  void take_head(const Problem& p, int64_t h, int64_t start, int64_t size) {
    const int64_t n = whole(size), w = p.width;
    copy_rows(p.q, h, start, size, w, rows);
    pack_columns(rows, n, w, queries);
    pack_rows(rows, n, w, queries_paired);
    copy_rows(p.grad, h, start, size, w, rows);
    pack_columns(rows, n, w, grads);
    pack_rows(rows, n, w, grads_paired);
    for (int64_t t = 0; t < n; ++t) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t d = 0; t < size && d < w; d += 16)
        sum = _mm512_fmadd_ps(widen(rows + t * w + d), widen(p.out.at(h, start + t) + d), sum);
      delta[t] = _mm512_reduce_add_ps(sum);
      lse[t] = t < size ? p.lse[h * p.length + start + t] * LOG2E : 0.f;
    }
    std::memset(dq, 0, n * w * sizeof(float));
  }

  // From `scores` and `dp` [keys][queries] the weights and the gradient of the scaled scores, also with keys in pairs.
  void differentiate(const Reach& reach, int64_t key, int64_t query, int64_t n, float scale, uint32_t* paired) {
    const bool all = reach.all(key, query);
    for (int64_t half = 0; half < EDGE; half += 16) {
      const __m512i q = _mm512_add_epi32(LANES(), _mm512_set1_epi32(query + half));
      const __m512 log_sum = _mm512_loadu_ps(lse + query + half), less = _mm512_loadu_ps(delta + query + half);
      const __m512 by = _mm512_set1_ps(scale * LOG2E), times = _mm512_set1_ps(scale);
      for (int64_t r = 0; r < EDGE; r += 2) {
        __m256i both[2];
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t at = (r + i) * EDGE + half, k = key + r + i;
          __m512 x = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), by, log_sum));
          if (!all) {
            const __mmask16 seen = _mm512_cmple_epi32_mask(_mm512_set1_epi32(k), q) &
                                   _mm512_cmplt_epi32_mask(q, _mm512_set1_epi32(reach.stop[k]));
            x = _mm512_maskz_mov_ps(seen, x);
          }
          const __m512 slope = _mm512_mul_ps(times, _mm512_sub_ps(_mm512_loadu_ps(dp + at), less));
          both[i] = narrow(_mm512_mul_ps(x, slope));
          _mm256_storeu_si256((__m256i*)(weights + (r + i) * n + query + half), narrow(x));
          _mm256_storeu_si256((__m256i*)(ds + (r + i) * n + query + half), both[i]);
        }
        _mm512_storeu_si512(paired + r / 2 * n + query + half, pairs(both[0], both[1]));
      }
    }
  }

  // to[32][width] += a[32][queries] b[queries][width] over the queries that see the block of keys
  static void collect(const Reach& reach, int64_t key, const bf16* a, const uint32_t* b, int64_t n, int64_t w, float* to) {
    for (int64_t d = 0; d < w; d += EDGE) {
      load(to + d, w);
      for (int64_t q = key; !reach.none(key, q); q += EDGE) add(a + q, n, b + q / 2 * w + d, b + q / 2 * w + d + 16, w);
      store(to + d, w);
    }
  }

  void give_queries(const Problem& p, int64_t h, int64_t start, int64_t size) {
    const int64_t n = whole(size);
    __m512i r[16];
    for (int64_t q = 0; q < size; q += 16)
      for (int64_t d = 0; d < p.width; d += 16) {
        for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(dq + (d + i) * n + q);
        transpose(r);
        for (int64_t i = 0; i < std::min<int64_t>(16, size - q); ++i)
          _mm256_storeu_si256((__m256i*)(p.dq.at(h, start + q + i) + d), narrow(_mm512_castsi512_ps(r[i])));
      }
  }
};

// Whether all could be done: 1, or 0 when there was no memory.
template <typename Pass>
int run_all(const Problem& p) {
  std::vector<int64_t> order(p.num_trees);
  int64_t longest = 0;
  for (int64_t t = 0; t < p.num_trees; ++t) {
    order[t] = t;
    longest = std::max(longest, p.trees[2 * t + 1] - p.trees[2 * t]);
  }
  auto size = [&](int64_t t) { return p.trees[2 * t + 1] - p.trees[2 * t]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size(a) > size(b); });
  int failed = 0;
#pragma omp parallel num_threads(p.threads) reduction(| : failed)
  {
    Pass pass;
    Scratch counted;
    char* memory = static_cast<char*>(std::aligned_alloc(64, Pass::layout(counted, longest, p.width, pass)));
    failed = memory == nullptr;
    const Tiles tiles;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < p.num_trees * p.kv_heads; ++i) {
      if (!memory) continue;
      const int64_t tree = order[i / p.kv_heads];
      Scratch scratch(memory);
      Pass::layout(scratch, size(tree), p.width, pass);
      pass.run(p, tree, i % p.kv_heads);
    }
    std::free(memory);
  }
  return !failed;
}

Heads heads(void* data, const int64_t* strides) { return {static_cast<bf16*>(data), strides[0], strides[1]}; }

}  // namespace

extern "C" {

// Ask the system for the tiles; 0 when this process may not have them.
int tree_attention_allowed() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// data: q, k, v, out, lse; strides: of head and token, two for each of q, k, v, out;
// sizes: trees, heads, key-value heads, width, length, threads
int tree_attention_forward(void* const* data, const int64_t* strides, const int32_t* stops, const int64_t* trees,
                           const int64_t* sizes, float scale) {
  Problem p{};
  p.q = heads(data[0], strides), p.k = heads(data[1], strides + 2), p.v = heads(data[2], strides + 4);
  p.out = heads(data[3], strides + 6), p.lse = static_cast<float*>(data[4]);
  p.stops = stops, p.trees = trees, p.scale = scale;
  p.num_trees = sizes[0], p.heads = sizes[1], p.kv_heads = sizes[2], p.width = sizes[3], p.length = sizes[4];
  p.threads = sizes[5];
  return run_all<Forward>(p);
}

// data: q, k, v, out, lse, the gradients of out, q, k, v; strides: of q, k, v, out, gradients of out, q, k, v
int tree_attention_backward(void* const* data, const int64_t* strides, const int32_t* stops, const int64_t* trees,
                            const int64_t* sizes, float scale) {
  Problem p{};
  p.q = heads(data[0], strides), p.k = heads(data[1], strides + 2), p.v = heads(data[2], strides + 4);
  p.out = heads(data[3], strides + 6), p.lse = static_cast<float*>(data[4]);
  p.grad = heads(data[5], strides + 8), p.dq = heads(data[6], strides + 10);
  p.dk = heads(data[7], strides + 12), p.dv = heads(data[8], strides + 14);
  p.stops = stops, p.trees = trees, p.scale = scale;
  p.num_trees = sizes[0], p.heads = sizes[1], p.kv_heads = sizes[2], p.width = sizes[3], p.length = sizes[4];
  p.threads = sizes[5];
  return run_all<Backward>(p);
}
}
