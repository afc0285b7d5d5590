// Lookups of stored rows: gathered, decoded and pooled in one pass, for all lookups of a request.
//
// Tables may be memory-mapped files of any size. Results are the same bits for any number of
// threads, and those of `dlrm_jax.artifact.row_pooling` in NumPy: one thread sums a bag, in the
// order of its ids.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

enum Format : int64_t { kFloat32, kBfloat16, kInt8, kInt4 };
enum Pooling : int64_t { kSum, kMean, kNone };

// As `native.stored_rows` describes it to NumPy.
struct Lookup {
  const uint8_t* table;
  int64_t rows, row_bytes, dim, format, pooling;
  int64_t first_id, length;  // columns of ids
  int64_t first_out;         // first column of the result
  int64_t divisor, modulus;  // of the ids; 0 without
};

// ids [n, C], weights of the same shape or none, result [n, W].
struct Request {
  const void* ids;
  const float* weights;
  float* out;
  int64_t id_columns, out_columns;
  bool streamed;  // whether results are written past the caches
};

// Rows that are prefetched at once, then pooled: many enough that the memory is always busy, few
// enough for a core's cache. Without huge pages this is twice as fast as some rows ahead.
constexpr int64_t kRowsAtOnce = 2048;
// Results that are larger than a core's cache are written past it: else each line is read before.
constexpr int64_t kStreamedBytes = 4 << 20;
// Starting a thread pays off from some thousand rows on.
constexpr int64_t kRowsPerThread = 4096;

template <int kWidth, typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kWidth * sizeof(T))));
};
template <int kWidth, typename T>
using Vector = typename VectorOf<kWidth, T>::Type;

template <typename T>
inline T Read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Numbers j ... j + kWidth - 1 of a row, where j is a multiple of kWidth.
template <Format kFormat, int kWidth>
inline Vector<kWidth, float> Decoded(const uint8_t* row, int64_t j) {
  using Floats = Vector<kWidth, float>;
  if constexpr (kFormat == kFloat32) return Read<Floats>(row + 4 * j);
  if constexpr (kFormat == kBfloat16) {
    const auto halves = Read<Vector<kWidth, uint16_t>>(row + 2 * j);
    return (Floats)(__builtin_convertvector(halves, Vector<kWidth, uint32_t>) << 16);
  }
  float scale, bias;
#ifdef __F16C__
  const __m128 header = _mm_cvtph_ps(_mm_cvtsi32_si128(Read<int32_t>(row)));
  scale = header[0];
  bias = header[1];
#else
  scale = HalfToFloat(Read<uint16_t>(row));
  bias = HalfToFloat(Read<uint16_t>(row + 2));
#endif
  Vector<kWidth, uint8_t> integers;
  if constexpr (kFormat == kInt8) integers = Read<Vector<kWidth, uint8_t>>(row + 4 + j);
  if constexpr (kFormat == kInt4 && kWidth == 1) {
    integers[0] = row[4 + j / 2] >> 4 * (j & 1) & 15;
  } else if constexpr (kFormat == kInt4) {  // each half of a byte becomes a byte, the lower first
    const auto pairs = Read<Vector<kWidth / 2, uint8_t>>(row + 4 + j / 2);
    const auto wide = __builtin_convertvector(pairs, Vector<kWidth / 2, uint16_t>);
    integers = (Vector<kWidth, uint8_t>)((wide | wide << 4) & 0x0f0f);
  }
  Vector<kWidth, int32_t> words;
#ifdef __AVX512F__
  if constexpr (kWidth == 16) words = (Vector<kWidth, int32_t>)_mm512_cvtepu8_epi32((__m128i)integers);
  if constexpr (kWidth != 16)
#endif
  {  // step by step: GCC converts bytes to floats one by one
    const auto halves = __builtin_convertvector(integers, Vector<kWidth, uint16_t>);
    words = __builtin_convertvector(halves, Vector<kWidth, int32_t>);
  }
  return scale * __builtin_convertvector(words, Floats) + bias;
}

// The stored row of an id, or none if it is absent; `wrong` becomes true if it is out of range.
inline const uint8_t* RowOf(const Lookup& lookup, int64_t id, bool& wrong) {
  if (id < 0) return nullptr;
  if (lookup.divisor) id /= lookup.divisor;
  if (lookup.modulus) id %= lookup.modulus;
  if (id < lookup.rows) return lookup.table + id * lookup.row_bytes;
  wrong = true;
  return nullptr;
}

// Finds and prefetches the rows of bags [begin, end). Returns the first bag with an id out of
// range, or -1.
template <typename Id>
int64_t FindRows(const Request& request, const Lookup& lookup, int64_t begin, int64_t end,
                 const uint8_t** rows) {
  int64_t first_wrong = -1;
  for (int64_t bag = begin; bag < end; ++bag) {
    const Id* const ids =
        static_cast<const Id*>(request.ids) + bag * request.id_columns + lookup.first_id;
    bool wrong = false;
    for (int64_t i = 0; i < lookup.length; ++i, ++rows) {
      const uint8_t* const row = *rows = RowOf(lookup, ids[i], wrong);
      if (!row) continue;
      for (int64_t k = 0; k < lookup.row_bytes; k += 64) __builtin_prefetch(row + k);
      __builtin_prefetch(row + lookup.row_bytes - 1);
    }
    if (wrong && first_wrong < 0) first_wrong = bag;
  }
  return first_wrong;
}

// Columns [j, j + kWidth * kVectors) of the weighted sum of rows, divided by `divisor`. They stay in
// registers until all rows are added.
template <Format kFormat, int kWidth, int kVectors>
inline void PoolColumns(const uint8_t* const* rows, const float* weights, int64_t length,
                        float divisor, int64_t j, float* out) {
  Vector<kWidth, float> sums[kVectors] = {};
  for (int64_t i = 0; i < length; ++i) {
    if (!rows[i]) continue;
    const float weight = weights ? weights[i] : 1.f;
    for (int k = 0; k < kVectors; ++k)
      sums[k] += weight * Decoded<kFormat, kWidth>(rows[i], j + k * kWidth);
  }
  if (divisor != 1) {
    for (auto& sum : sums) sum /= divisor;
  }
  std::memcpy(out + j, sums, sizeof(sums));
}

template <Format kFormat>
inline void PoolBag(const uint8_t* const* rows, const float* weights, int64_t length, float divisor,
                    int64_t dim, float* out) {
  int64_t j = 0;
  for (; j + 64 <= dim; j += 64)
    PoolColumns<kFormat, 16, 4>(rows, weights, length, divisor, j, out);
  for (; j + 16 <= dim; j += 16)
    PoolColumns<kFormat, 16, 1>(rows, weights, length, divisor, j, out);
  for (; j + 4 <= dim; j += 4)
    PoolColumns<kFormat, 4, 1>(rows, weights, length, divisor, j, out);
  for (; j < dim; ++j) PoolColumns<kFormat, 1, 1>(rows, weights, length, divisor, j, out);
}

// What a mean divides by; infinite for a mean of nothing, which is 0.
inline float Divisor(const uint8_t* const* rows, const float* weights, int64_t length) {
  float total = 0;
  for (int64_t i = 0; i < length; ++i) {
    if (rows[i]) total += weights ? weights[i] : 1.f;
  }
  return total == 0 ? __builtin_inff() : total;
}

inline void Store(Vector<16, float> numbers, bool streamed, float* to) {
#ifdef __AVX512F__
  if (streamed) return _mm512_stream_ps(to, (__m512)numbers);
#endif
  std::memcpy(to, &numbers, sizeof(numbers));
}

// Bags of one id without weights are its row, whatever the pooling: the most frequent case.
template <Format kFormat>
void DecodeSamples(const Request& request, const Lookup& lookup, int64_t begin, int64_t end,
                   const uint8_t* const* rows) {
  using Floats = Vector<16, float>;
  const int64_t dim = lookup.dim;
  float* out = request.out + begin * request.out_columns + lookup.first_out;
  const bool streamed = request.streamed && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  for (int64_t sample = begin; sample < end; ++sample, out += request.out_columns) {
    const uint8_t* const row = rows[sample - begin];
    for (int64_t j = 0; j < dim; j += 16) {
      const Floats numbers = row ? Floats{} + Decoded<kFormat, 16>(row, j) : Floats{};
      Store(numbers, streamed, out + j);
    }
  }
}

// Pools the bags of samples [begin, end), the rows of which have been found.
template <Format kFormat>
void PoolSamples(const Request& request, const Lookup& lookup, int64_t begin, int64_t end,
                 const uint8_t* const* rows) {
  if (lookup.length == 1 && !request.weights && lookup.dim % 16 == 0)
    return DecodeSamples<kFormat>(request, lookup, begin, end, rows);
  // Without pooling, each id is a bag.
  const int64_t bags = lookup.pooling == kNone ? lookup.length : 1, length = lookup.length / bags;
  for (int64_t sample = begin; sample < end; ++sample) {
    const float* weights = request.weights
                               ? request.weights + sample * request.id_columns + lookup.first_id
                               : nullptr;
    float* out = request.out + sample * request.out_columns + lookup.first_out;
    for (int64_t bag = 0; bag < bags; ++bag, rows += length, out += lookup.dim) {
      const float divisor = lookup.pooling == kMean ? Divisor(rows, weights, length) : 1;
      PoolBag<kFormat>(rows, weights, length, divisor, lookup.dim, out);
      if (weights) weights += length;
    }
  }
}

template <typename Id>
int64_t PoolRows(const Lookup* lookups, int64_t count, const Request& request, int64_t samples,
                 int64_t threads) {
  static constexpr decltype(&PoolSamples<kInt8>) kPool[] = {
      PoolSamples<kFloat32>, PoolSamples<kBfloat16>, PoolSamples<kInt8>, PoolSamples<kInt4>};
  int64_t ids = 0;
  for (int64_t i = 0; i < count; ++i) ids += lookups[i].length;
  threads = std::clamp<int64_t>(samples * ids / kRowsPerThread, 1, threads);
  const int64_t each = std::max<int64_t>(1, kRowsAtOnce / ids);
  std::atomic<int64_t> first_wrong{INT64_MAX};
  OnThreads(threads, (samples + each - 1) / each, [&](int64_t task) {
    const int64_t begin = task * each, end = std::min(samples, begin + each);
    std::vector<const uint8_t*> rows((end - begin) * ids);
    int64_t first = 0;
    for (int64_t i = 0; i < count; first += (end - begin) * lookups[i++].length) {
      const int64_t wrong = FindRows<Id>(request, lookups[i], begin, end, &rows[first]);
      if (wrong < 0) continue;
      int64_t seen = first_wrong.load();
      const int64_t found = wrong * count + i;
      while (found < seen && !first_wrong.compare_exchange_weak(seen, found)) {
      }
    }
    first = 0;
    for (int64_t i = 0; i < count; first += (end - begin) * lookups[i++].length)
      kPool[lookups[i].format](request, lookups[i], begin, end, &rows[first]);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // orders what was written past the caches
  });
  return first_wrong == INT64_MAX ? -1 : first_wrong.load();
}

}  // namespace

// Pools [samples, id_columns] ids of 4 or 8 bytes into [samples, out_columns]. Ids out of range are
// treated as absent. Returns -1, or for the first bag with such an id the number of its sample,
// times the number of lookups, plus that of its lookup.
extern "C" int64_t DlrmJaxPoolStoredRows(const void* lookups, int64_t count, const void* ids,
                                         int64_t id_bytes, const float* weights, float* out,
                                         int64_t samples, int64_t id_columns, int64_t out_columns,
                                         int64_t threads) {
  const auto* const all = static_cast<const Lookup*>(lookups);
  const bool streamed =
      out_columns % 16 == 0 && 4 * samples * out_columns > kStreamedBytes;
  const Request request{ids, weights, out, id_columns, out_columns, streamed};
  return id_bytes == 8 ? PoolRows<int64_t>(all, count, request, samples, threads)
                       : PoolRows<int32_t>(all, count, request, samples, threads);
}
