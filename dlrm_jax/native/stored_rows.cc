// Lookups of stored rows: gathered, decoded and pooled in one pass, for all lookups of a request.
//
// Tables may be memory-mapped files of any size. Results are the same bits for any number of
// threads, and those of `dlrm_jax.artifact.row_pooling` in NumPy: one thread sums a bag, in the
// order of its ids.

#include <algorithm>
#include <atomic>
#include <cstdint>

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
};

// The number of rows to prefetch ahead: enough to hide the latency of memory.
constexpr int64_t kAhead = 16;
// The most rows of a task that are all prefetched at its start.
constexpr int64_t kAtOnce = 512;
// Samples whose results stay in a core's cache.
constexpr int64_t kSamplesPerTask = 128;
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
  const float scale = HalfToFloat(Read<uint16_t>(row));
  const float bias = HalfToFloat(Read<uint16_t>(row + 2));
  Vector<kWidth, uint8_t> integers;
  if constexpr (kFormat == kInt8) integers = Read<Vector<kWidth, uint8_t>>(row + 4 + j);
  if constexpr (kFormat == kInt4 && kWidth == 1) {
    integers[0] = row[4 + j / 2] >> 4 * (j & 1) & 15;
  } else if constexpr (kFormat == kInt4) {  // each half of a byte becomes a byte, the lower first
    const auto pairs = Read<Vector<kWidth / 2, uint8_t>>(row + 4 + j / 2);
    const auto wide = __builtin_convertvector(pairs, Vector<kWidth / 2, uint16_t>);
    integers = (Vector<kWidth, uint8_t>)((wide | wide << 4) & 0x0f0f);
  }
  return scale * __builtin_convertvector(integers, Floats) + bias;
}

constexpr int64_t kAbsent = -1, kOutOfRange = -2;

inline int64_t RowOf(const Lookup& lookup, int64_t id) {
  if (id < 0) return kAbsent;
  if (lookup.divisor) id /= lookup.divisor;
  if (lookup.modulus) id %= lookup.modulus;
  return id < lookup.rows ? id : kOutOfRange;
}

// Columns [j, j + kWidth * kVectors) of the weighted sum of a bag, divided by `divisor`. They stay
// in registers until all rows are added.
template <Format kFormat, int kWidth, int kVectors, typename Id>
inline void PoolColumns(const Lookup& lookup, const Id* ids, const float* weights, int64_t length,
                        float divisor, int64_t j, float* out) {
  Vector<kWidth, float> sums[kVectors] = {};
  for (int64_t i = 0; i < length; ++i) {
    const int64_t row = RowOf(lookup, ids[i]);
    if (row < 0) continue;
    const uint8_t* const stored = lookup.table + row * lookup.row_bytes;
    const float weight = weights ? weights[i] : 1.f;
    for (int k = 0; k < kVectors; ++k)
      sums[k] += weight * Decoded<kFormat, kWidth>(stored, j + k * kWidth);
  }
  if (lookup.pooling == kMean) {
    for (auto& sum : sums) sum /= divisor;
  }
  std::memcpy(out + j, sums, sizeof(sums));
}

template <Format kFormat, typename Id>
inline void PoolBag(const Lookup& lookup, const Id* ids, const float* weights, int64_t length,
                    float divisor, float* out) {
  int64_t j = 0;
  for (; j + 64 <= lookup.dim; j += 64)
    PoolColumns<kFormat, 16, 4>(lookup, ids, weights, length, divisor, j, out);
  for (; j + 16 <= lookup.dim; j += 16)
    PoolColumns<kFormat, 16, 1>(lookup, ids, weights, length, divisor, j, out);
  for (; j + 4 <= lookup.dim; j += 4)
    PoolColumns<kFormat, 4, 1>(lookup, ids, weights, length, divisor, j, out);
  for (; j < lookup.dim; ++j)
    PoolColumns<kFormat, 1, 1>(lookup, ids, weights, length, divisor, j, out);
}

template <typename Id>
inline void PrefetchBags(const Request& request, const Lookup& lookup, int64_t bag, int64_t end) {
  for (; bag < end; ++bag) {
    const Id* const ids =
        static_cast<const Id*>(request.ids) + bag * request.id_columns + lookup.first_id;
    for (int64_t i = 0; i < lookup.length; ++i) {
      const int64_t row = RowOf(lookup, ids[i]);
      if (row < 0) continue;
      const uint8_t* const stored = lookup.table + row * lookup.row_bytes;
      for (int64_t k = 0; k < lookup.row_bytes; k += 64) __builtin_prefetch(stored + k);
      __builtin_prefetch(stored + lookup.row_bytes - 1);
    }
  }
}

inline int64_t BagsAhead(const Lookup& lookup) {
  return (kAhead + lookup.length - 1) / lookup.length;
}

// Pools the bags of samples [begin, end). Where `ahead`, prefetches rows of later bags, and towards
// the end the first rows of the next lookup. Returns the first bag with an id out of range, or -1.
template <Format kFormat, typename Id>
int64_t PoolSamples(const Request& request, const Lookup& lookup, const Lookup* next, bool ahead,
                    int64_t begin, int64_t end) {
  const int64_t bags_ahead = BagsAhead(lookup), next_ahead = next ? BagsAhead(*next) : 0;
  int64_t wrong = -1;
  for (int64_t bag = begin; bag < end; ++bag) {
    if (ahead) {
      const int64_t coming = bag + bags_ahead, k = coming - end;
      if (k < 0) {
        PrefetchBags<Id>(request, lookup, coming, coming + 1);
      } else if (next) {
        PrefetchBags<Id>(request, *next, std::min(end, begin + k * next_ahead / bags_ahead),
                         std::min(end, begin + (k + 1) * next_ahead / bags_ahead));
      }
    }
    const int64_t first = bag * request.id_columns + lookup.first_id;
    const Id* const ids = static_cast<const Id*>(request.ids) + first;
    const float* const weights = request.weights ? request.weights + first : nullptr;
    float* const out = request.out + bag * request.out_columns + lookup.first_out;
    float total = 0;
    for (int64_t i = 0; i < lookup.length; ++i) {
      const int64_t row = RowOf(lookup, ids[i]);
      if (row >= 0) total += weights ? weights[i] : 1.f;
      if (row == kOutOfRange && wrong < 0) wrong = bag;
    }
    if (lookup.pooling == kNone) {
      for (int64_t i = 0; i < lookup.length; ++i) {
        PoolBag<kFormat>(lookup, ids + i, weights ? weights + i : nullptr, 1, 1,
                         out + i * lookup.dim);
      }
    } else {
      // A mean of nothing is 0.
      const float divisor = total == 0 ? __builtin_inff() : total;
      PoolBag<kFormat>(lookup, ids, weights, lookup.length, divisor, out);
    }
  }
  return wrong;
}

template <typename Id>
int64_t PoolRows(const Lookup* lookups, int64_t count, const Request& request, int64_t samples,
                 int64_t threads) {
  static constexpr decltype(&PoolSamples<kInt8, Id>) kFunctions[] = {
      PoolSamples<kFloat32, Id>, PoolSamples<kBfloat16, Id>, PoolSamples<kInt8, Id>,
      PoolSamples<kInt4, Id>};
  int64_t ids = 0;
  for (int64_t i = 0; i < count; ++i) ids += lookups[i].length;
  threads = std::clamp<int64_t>(samples * ids / kRowsPerThread, 1, threads);
  // Several tasks for each thread, as threads may differ in speed.
  const int64_t each =
      threads == 1 ? kSamplesPerTask
                   : std::clamp<int64_t>(samples / (4 * threads), 1, kSamplesPerTask);
  std::atomic<int64_t> first_wrong{INT64_MAX};
  OnThreads(threads, (samples + each - 1) / each, [&](int64_t task) {
    const int64_t begin = task * each, end = std::min(samples, begin + each);
    const bool at_once = (end - begin) * ids <= kAtOnce;
    for (int64_t i = 0; i < (at_once ? count : std::min<int64_t>(count, 1)); ++i) {
      PrefetchBags<Id>(request, lookups[i], begin,
                       at_once ? end : std::min(end, begin + BagsAhead(lookups[i])));
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t wrong =
          kFunctions[lookups[i].format](request, lookups[i], i + 1 < count ? lookups + i + 1 : nullptr,
                                        !at_once, begin, end);
      if (wrong < 0) continue;
      int64_t seen = first_wrong.load();
      const int64_t found = wrong * count + i;
      while (found < seen && !first_wrong.compare_exchange_weak(seen, found)) {
      }
    }
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
  const Request request{ids, weights, out, id_columns, out_columns};
  return id_bytes == 8 ? PoolRows<int64_t>(all, count, request, samples, threads)
                       : PoolRows<int32_t>(all, count, request, samples, threads);
}
