// HSTU's pointwise attention as custom calls, see pointwise_attention.h.

#include "pointwise_attention.h"

#include <numeric>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

using namespace pointwise_attention;
using Array = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Buffer<ffi::S32>;
using Result = ffi::Result<Array>;

struct Sequence {
  int64_t start, length;
};

// Sequences that one task goes through: some tokens' worth, so that short ones share its sums.
using Group = std::vector<Sequence>;
constexpr int64_t kGroupTokens = 256;

ffi::ErrorOr<std::vector<Group>> Groups(const Numbers& starts) {
  const int64_t tokens = starts.element_count();
  const int32_t* const start = starts.typed_data();
  std::vector<Group> groups;
  int64_t left = 0;  // tokens that the last group still takes
  for (int64_t t = 0, end; t < tokens; t = end) {
    for (end = t + 1; end < tokens && start[end] == start[t];) ++end;
    if (start[t] >= tokens) continue;  // filling
    if (start[t] != t)
      return ffi::Unexpected(ffi::Error::InvalidArgument("expected sequences packed one behind the other"));
    if (left <= 0) {
      groups.emplace_back();
      left = kGroupTokens;
    }
    groups.back().push_back({t, end - t});
    left -= end - t;
  }
  return groups;
}

int64_t Longest(const Group& group) {
  int64_t longest = 0;
  for (const Sequence& sequence : group) longest = std::max(longest, sequence.length);
  return longest;
}

// A bias for sequences up to the longest one of a batch.
class BatchBias {
 public:
  BatchBias(const Array& by_distance, const ffi::RemainingArgs& by_time, int64_t longest)
      : distances_(by_distance.element_count()),
        zero_(longest),
        reversed_(longest + 1 + 2 * kPanel),
        buckets_(by_time.size() ? by_time.get<Array>(0)->element_count() : 1) {
    for (int64_t d = 0; d <= longest; ++d)
      reversed_[zero_ - d] = by_distance.typed_data()[std::min(d, distances_ - 1)];
    if (by_time.size() == 0) return;
    by_time_ = by_time.get<Array>(0)->typed_data();
    times_ = by_time.get<Numbers>(1)->typed_data();
    next_times_ = by_time.get<Numbers>(2)->typed_data();
  }

  Bias of(int64_t start) const {
    const float* const by_distance = reversed_.data() + zero_;
    if (!by_time_) return {by_distance, nullptr, nullptr, nullptr, nullptr};
    return {by_distance, by_time_, &buckets_, times_ + start, next_times_ + start};
  }

 private:
  const int64_t distances_, zero_;
  std::vector<float> reversed_;  // and zeros behind it, for keys behind a query
  TimeBuckets buckets_;
  const float* by_time_ = nullptr;
  const int32_t *times_ = nullptr, *next_times_ = nullptr;
};

// A head's rows from a token on.
HeadRows RowsOf(const Array& array, int64_t token, int64_t head) {
  const int64_t heads = array.dimensions()[1], width = array.dimensions()[2];
  return {array.typed_data() + (token * heads + head) * width, heads * width, width};
}

// Calls work(number, group, head) for each pair, those with the longest sequences first.
template <typename Work>
void ForTasks(ffi::ThreadPool pool, const std::vector<Group>& groups, int64_t heads, const Work& work) {
  std::vector<int64_t> order(groups.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return Longest(groups[a]) > Longest(groups[b]); });
  Parallel(pool, static_cast<int64_t>(groups.size()) * heads, [&](int64_t task) {
    const int64_t group = order[task / heads], head = task % heads;
    work(group * heads + head, groups[group], head);
  });
}

int64_t Longest(const std::vector<Group>& groups) {
  int64_t longest = 0;
  for (const Group& group : groups) longest = std::max(longest, Longest(group));
  return longest;
}

ffi::Error Forward(ffi::ThreadPool pool, Array query, Array key, Array value, Numbers starts,
                   Array by_distance, ffi::RemainingArgs by_time, Result out, float scale) {
  const auto found = Groups(starts);
  if (!found) return found.error();
  const std::vector<Group>& groups = *found;
  const BatchBias bias(by_distance, by_time, Longest(groups));
  std::fill_n(out->typed_data(), out->element_count(), 0.0f);  // filling
  ForTasks(pool, groups, query.dimensions()[1], [&](int64_t, const Group& group, int64_t head) {
    for (const auto [start, length] : group) {
      const Bias own = bias.of(start);
      Task task(RowsOf(query, start, head), RowsOf(key, start, head), RowsOf(value, start, head), own,
                length);
      task.Forward(scale, RowsOf(*out, start, head));
    }
  });
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, Array query, Array key, Array value, Numbers starts,
                    Array by_distance, Array of_out, ffi::RemainingArgs by_time, Result of_query,
                    Result of_key, Result of_value, Result of_by_distance, ffi::RemainingRets of_by_time,
                    float scale) {
  const auto found = Groups(starts);
  if (!found) return found.error();
  const std::vector<Group>& groups = *found;
  const BatchBias bias(by_distance, by_time, Longest(groups));
  for (Result result : {of_query, of_key, of_value})
    std::fill_n(result->typed_data(), result->element_count(), 0.0f);  // filling
  const int64_t heads = query.dimensions()[1], distances = by_distance.element_count();
  const int64_t buckets = by_time.size() ? by_time.get<Array>(0)->element_count() : 0;
  // Of each task, added up in their order: results don't depend on the number of threads.
  std::vector<std::vector<float>> sums(groups.size() * heads);
  ForTasks(pool, groups, heads, [&](int64_t number, const Group& group, int64_t head) {
    std::vector<float> own(distances + buckets);
    BiasSums parts{std::vector<float>(Longest(group) + 2 * kPanel), std::vector<Floats>(buckets)};
    for (const auto [start, length] : group) {
      const Bias of_sequence = bias.of(start);
      Task task(RowsOf(query, start, head), RowsOf(key, start, head), RowsOf(value, start, head),
                of_sequence, length);
      std::fill(parts.by_distance.begin(), parts.by_distance.end(), 0.0f);
      task.Backward(scale, RowsOf(of_out, start, head), RowsOf(*of_query, start, head),
                    RowsOf(*of_key, start, head), RowsOf(*of_value, start, head), parts);
      for (int64_t d = 0; d < length; ++d)
        own[std::min(d, distances - 1)] += parts.by_distance[length - d];
    }
    for (int64_t b = 0; b < buckets; ++b)
      for (int lane = 0; lane < kTile; ++lane) own[distances + b] += parts.by_time[b][lane];
    sums[number] = std::move(own);
  });
  std::vector<double> total(distances + buckets);
  for (const auto& own : sums)
    for (size_t i = 0; i < total.size(); ++i) total[i] += own[i];
  std::copy_n(total.begin(), distances, of_by_distance->typed_data());
  if (buckets)
    std::copy_n(total.begin() + distances, buckets, (*of_by_time.get<Array>(0))->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxPointwiseAttention, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Numbers>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxPointwiseAttentionBack, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Numbers>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .RemainingRets()
                                  .Attr<float>("scale"));
