// Lookups of long bags and updates of rows.
//
// Results don't depend on the number of threads: each row is updated by one thread, which adds
// up its gradients in the order of the batch, and each bag is pooled by one thread.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"
#include "radix_sort.h"
#include "xla/ffi/api/ffi.h"

namespace {

// One block of bags: rows [bags, length], weights of the same shape or none, and gradients
// [bags, d], except for pooling.
struct Bags {
  const int32_t* rows;
  const float* weights;
  const float* gradients;
  int64_t bags;
  int64_t length;
};

// The number of rows to prefetch ahead: enough to hide the latency of memory.
constexpr size_t kAhead = 16;

template <int kWrite>
inline void Prefetch(const float* row, int64_t d) {
  for (int64_t j = 0; j < d; j += 16) __builtin_prefetch(row + j, kWrite);
}

// An occurrence of a row: its index within a block.
struct Occurrences {
  const std::vector<Bags>& blocks;
  int64_t d;

  int64_t count() const {
    int64_t total = 0;
    for (const Bags& block : blocks) total += block.bags * block.length;
    return total;
  }

  // Starting a thread pays off from some thousand rows on.
  int64_t tasks(ffi::ThreadPool pool) const {
    return std::clamp<int64_t>(count() / 8192, 1, Threads(pool));
  }

  // sum += weight · gradient of an occurrence.
  void AddTo(float* sum, uint32_t occurrence, float factor) const {
    const Bags* block = blocks.data();
    for (; occurrence >= block->bags * block->length; ++block)
      occurrence -= block->bags * block->length;
    if (block->weights) factor *= block->weights[occurrence];
    const float* gradient =
        block->gradients + int64_t{occurrence / static_cast<uint32_t>(block->length)} * d;
    for (int64_t j = 0; j < d; ++j) sum[j] += factor * gradient[j];
  }
};

// Calls visit(row, occurrence) for this task's rows in [0, limit), in the order of
// the batch. Fibonacci hashing gives the hottest rows, often neighbors, to different tasks.
template <typename Visit>
void ForEachRowOfTask(const std::vector<Bags>& blocks, int64_t limit, int64_t task, int64_t tasks,
                      const Visit& visit) {
  uint32_t occurrence = 0;
  for (const Bags& block : blocks) {
    for (int64_t i = 0; i < block.bags * block.length; ++i, ++occurrence) {
      const uint32_t row = block.rows[i];
      if (row >= static_cast<uint64_t>(limit)) continue;
      if ((uint64_t{row * 2654435769u} * tasks) >> 32 != static_cast<uint64_t>(task)) continue;
      visit(row, occurrence);
    }
  }
}

// Calls update(row, gradient) for each row of [0, limit) that occurs in the bags, with the sum of
// its gradients, times the weights. `ahead(row)` comes some rows earlier.
template <typename Ahead, typename Update>
void ForEachRow(ffi::ThreadPool pool, const std::vector<Bags>& blocks, int64_t limit, int64_t d,
                const Ahead& ahead, const Update& update) {
  const Occurrences occurrences{blocks, d};
  const int64_t tasks = occurrences.tasks(pool);
  Parallel(pool, tasks, [&](int64_t task) {
    // Kept from call to call: fresh memory would have to be mapped and zeroed each time.
    static thread_local std::vector<uint64_t> kept, kept_other;
    static thread_local std::vector<float> kept_sum;
    std::vector<uint64_t>&keys = kept, &other = kept_other;
    keys.clear();
    kept_sum.resize(d);
    float* const sum = kept_sum.data();
    ForEachRowOfTask(blocks, limit, task, tasks, [&](uint32_t row, uint32_t occurrence) {
      keys.push_back(uint64_t{row} << 32 | occurrence);
    });
    RadixSort(keys, other, limit);
    for (size_t i = 0, end; i < keys.size(); i = end) {
      const uint32_t row = keys[i] >> 32;
      for (int64_t j = 0; j < d; ++j) sum[j] = 0;
      for (end = i; end < keys.size() && keys[end] >> 32 == row; ++end) {
        if (end + kAhead < keys.size()) ahead(keys[end + kAhead] >> 32);
        occurrences.AddTo(sum, static_cast<uint32_t>(keys[end]), 1.f);
      }
      update(row, sum);
    }
  });
}

ffi::ErrorOr<std::vector<Bags>> Blocks(ffi::RemainingArgs args, bool weighted) {
  std::vector<Bags> blocks;
  const size_t each = weighted ? 3 : 2;
  for (size_t i = 0; i + each <= args.size(); i += each) {
    auto rows = args.get<ffi::Buffer<ffi::S32>>(i);
    auto gradients = args.get<ffi::Buffer<ffi::F32>>(i + 1);
    if (!rows || !gradients) return ffi::Unexpected(ffi::Error::InvalidArgument("block dtypes"));
    const auto shape = rows->dimensions();
    const int64_t length = shape.back();
    Bags block{rows->typed_data(), nullptr, gradients->typed_data(),
               static_cast<int64_t>(rows->element_count()) / length, length};
    if (weighted) {
      auto weights = args.get<ffi::Buffer<ffi::F32>>(i + 2);
      if (!weights) return ffi::Unexpected(ffi::Error::InvalidArgument("weights' dtype"));
      block.weights = weights->typed_data();
    }
    blocks.push_back(block);
  }
  return blocks;
}

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

// Columns [0, kColumns) of a bag's sum, which stay in registers until all rows are added.
template <int kColumns>
inline void SumColumns(const float* table, int64_t limit, int64_t d, const int32_t* rows,
                       const float* weights, int64_t length, float* result) {
  float sum[kColumns] = {};
  for (int64_t i = 0; i < length; ++i) {
    const uint32_t row = rows[i];
    if (row >= static_cast<uint64_t>(limit)) continue;
    const float factor = weights ? weights[i] : 1.f;
    for (int j = 0; j < kColumns; ++j) sum[j] += factor * table[row * d + j];
  }
  for (int j = 0; j < kColumns; ++j) result[j] = sum[j];
}

// The weighted sums of the rows of bags [N, T, L], as [N, T, d].
ffi::Error Pool(ffi::ThreadPool pool, Array table, ffi::Buffer<ffi::S32> rows,
                ffi::RemainingArgs weights, Result result) {
  Bags bags{rows.typed_data(), nullptr, nullptr, 0, rows.dimensions().back()};
  const int64_t count = rows.element_count(), length = bags.length;
  bags.bags = count / length;
  if (weights.size() > 0) {
    auto given = weights.get<Array>(0);
    if (!given) return given.error();
    bags.weights = given->typed_data();
  }
  const float* const from = table.typed_data();
  const int64_t limit = table.dimensions()[0], d = table.dimensions()[1];
  // Several tasks for each thread, as threads may differ in speed.
  const int64_t tasks = std::clamp<int64_t>(count / 2048, 1, 4 * Threads(pool) + 1);
  Parallel(pool, tasks, [&](int64_t task) {
    const int64_t end = bags.bags * (task + 1) / tasks;
    for (int64_t bag = bags.bags * task / tasks; bag < end; ++bag) {
      const int64_t first = bag * length;
      for (int64_t i = first + kAhead; i < std::min<int64_t>(first + kAhead + length, count); ++i) {
        const uint32_t row = bags.rows[i];
        if (row < static_cast<uint64_t>(limit)) Prefetch<0>(from + row * d, d);
      }
      const int32_t* const mine = bags.rows + first;
      const float* const of_mine = bags.weights ? bags.weights + first : nullptr;
      float* const to = result->typed_data() + bag * d;
      int64_t j = 0;
      for (; j + 64 <= d; j += 64)
        SumColumns<64>(from + j, limit, d, mine, of_mine, length, to + j);
      for (; j + 16 <= d; j += 16)
        SumColumns<16>(from + j, limit, d, mine, of_mine, length, to + j);
      for (; j < d; ++j) SumColumns<1>(from + j, limit, d, mine, of_mine, length, to + j);
    }
  });
  return ffi::Error::Success();
}

// w -= rate · g; the result is the table's own buffer, or a copy that XLA has made of it.
ffi::Error Sgd(ffi::ThreadPool pool, Array, Array rate, ffi::RemainingArgs blocks_args,
               Result result, bool weighted) {
  auto blocks = Blocks(blocks_args, weighted);
  if (!blocks) return blocks.error();
  const auto shape = result->dimensions();
  float* const table = result->typed_data();
  const int64_t d = shape[1];
  const float step = *rate.typed_data();
  // Without sorting, as it doesn't matter whether a row's gradients are added up first.
  const Occurrences occurrences{*blocks, d};
  const int64_t tasks = occurrences.tasks(pool);
  Parallel(pool, tasks, [&](int64_t task) {
    std::pair<uint64_t, uint32_t> waiting[kAhead];
    size_t count = 0;
    auto update = [&](size_t i) {
      auto [row, occurrence] = waiting[i % kAhead];
      occurrences.AddTo(table + row * d, occurrence, -step);
    };
    ForEachRowOfTask(*blocks, shape[0], task, tasks, [&](uint32_t row, uint32_t occurrence) {
      Prefetch<1>(table + int64_t{row} * d, d);
      if (count >= kAhead) update(count);
      waiting[count++ % kAhead] = {row, occurrence};
    });
    for (size_t i = count < kAhead ? 0 : count - kAhead; i < count; ++i) update(i);
  });
  return ffi::Error::Success();
}

// a += mean(g²); w -= rate · g / (√a + eps).
ffi::Error RowwiseAdagrad(ffi::ThreadPool pool, Array, Array, Array rate,
                          ffi::RemainingArgs blocks_args, Result result, Result accumulators,
                          bool weighted, float eps) {
  auto blocks = Blocks(blocks_args, weighted);
  if (!blocks) return blocks.error();
  const auto shape = result->dimensions();
  float* const table = result->typed_data();
  float* const accumulator = accumulators->typed_data();
  const int64_t d = shape[1];
  const float step = *rate.typed_data();
  ForEachRow(
      pool, *blocks, shape[0], d,
      [&](uint64_t row) {
        Prefetch<1>(table + row * d, d);
        __builtin_prefetch(accumulator + row, 1);
      },
      [&](uint64_t row, const float* gradient) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < d; ++j) squares += gradient[j] * gradient[j];
        const float a = accumulator[row] += squares / d;
        const float scale = step / (std::sqrt(a) + eps);
        float* const w = table + row * d;
        for (int64_t j = 0; j < d; ++j) w[j] -= scale * gradient[j];
      });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxPool, Pool,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<Array>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxSgd, Sgd,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Attr<bool>("weighted"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxRowwiseAdagrad, RowwiseAdagrad,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<bool>("weighted")
                                  .Attr<float>("eps"));
