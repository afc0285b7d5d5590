// DLRM's dot interaction, see interaction.h, and its derivative as custom calls.

#include "interaction.h"

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

using namespace interaction;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

// Processes all examples, kLanes at a time and then the remainder. Each task calls the function
// that make_work() returns, with its own scratch memory, as work(first, lanes).
template <typename MakeWork>
void ForExamples(ffi::ThreadPool pool, int64_t n, const MakeWork& make_work) {
  const int64_t chunks = (n + kLanes - 1) / kLanes;
  // Several tasks for each thread, as threads may differ in speed.
  const int64_t tasks = std::clamp<int64_t>(chunks / 2, 1, 4 * Threads(pool) + 1);
  Parallel(pool, tasks, [&](int64_t task) {
    auto work = make_work();
    for (int64_t i = chunks * task / tasks; i < chunks * (task + 1) / tasks; ++i)
      work(i * kLanes, std::min<int64_t>(kLanes, n - i * kLanes));
  });
}

ffi::ErrorOr<Vectors> Given(Array x, ffi::RemainingArgs args, bool self_interaction, bool columns) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  Vectors vectors{x.typed_data(), {}, columns ? width : rows, columns ? rows : width,
                  self_interaction, columns};
  for (size_t i = 0; i < args.size(); ++i) {
    auto pooled = args.get<Array>(i);
    if (!pooled) return ffi::Unexpected(pooled.error());
    vectors.pooled.push_back({pooled->typed_data(), vectors.d});
  }
  return vectors;
}

// Calls run(numbers) with the numbers of an array, float32 or bfloat16.
template <typename Run>
ffi::Error WithNumbers(ffi::AnyBuffer array, const Run& run) {
  switch (array.element_type()) {
    case ffi::F32: return run(static_cast<float*>(array.untyped_data()));
    case ffi::BF16: return run(static_cast<uint16_t*>(array.untyped_data()));
    default: return ffi::Error::InvalidArgument("expected results of float32 or bfloat16");
  }
}

ffi::Error Interact(ffi::ThreadPool pool, Array x, ffi::RemainingArgs args,
                    ffi::Result<ffi::AnyBuffer> result, bool self_interaction, bool columns) {
  auto given = Given(x, args, self_interaction, columns);
  if (!given) return given.error();
  const Vectors& v = *given;
  return WithNumbers(*result, [&](auto* z) {
    ForExamples(pool, v.n, [&] {
      auto interact = std::make_shared<Interaction>(v);
      return [z, interact](int64_t first, int64_t lanes) { (*interact)(first, lanes, z); };
    });
    return ffi::Error::Success();
  });
}

// The derivative; with `columns`, x, z, d_z and d_x are [features, n]:
// d t[i] = Σ_j (g[i, j] + g[j, i]) t[j], with g the pairs' part of d_z; d_x also has the part of
// d_z for x itself.
ffi::Error InteractBack(ffi::ThreadPool pool, ffi::AnyBuffer gradient, Array x,
                        ffi::RemainingArgs args, Result d_x, ffi::RemainingRets d_pooled,
                        bool self_interaction, bool columns) {
  auto given = Given(x, args, self_interaction, columns);
  if (!given) return given.error();
  const Vectors& v = *given;
  std::vector<float*> results;
  for (size_t i = 0; i < d_pooled.size(); ++i) {
    auto result = d_pooled.get<Array>(i);
    if (!result) return result.error();
    results.push_back((*result)->typed_data());
  }
  return WithNumbers(gradient, [&](const auto* d_z) {
    ForExamples(pool, v.n, [&] {
      std::shared_ptr<Lanes[]> t(new Lanes[v.count() * kLanes]), g(new Lanes[v.pairs() + kLanes]);
      return [&, t, g](int64_t first, int64_t lanes) {
        v.ReadPairs(d_z, first, lanes, g.get());
        for (int64_t column = 0; column < v.d; column += kLanes) {
          const int64_t width = std::min<int64_t>(kLanes, v.d - column);
          v.Read(first, lanes, column, t.get());
          for (int64_t i = 0; i < v.count(); ++i) {
            Lanes sum[kLanes] = {};
            const Lanes* with = t.get();
            auto add = [&](const Lanes& of_pair) {
              for (int k = 0; k < kLanes; ++k) sum[k] += of_pair * with[k];
              with += kLanes;
            };
            const Lanes* const mine = g.get() + v.first_pair(i);
            for (int64_t j = 0; j < i; ++j) add(mine[j]);
            if (v.self_interaction)
              add(2 * mine[i]);
            else
              with += kLanes;
            for (int64_t j = i + 1; j < v.count(); ++j) add(g[v.first_pair(j) + i]);
            if (i == 0) {
              v.WriteX(d_z, first, lanes, column, sum, d_x->typed_data());
            } else {
              Transpose(sum);
              float* const to = results[i - 1] + first * v.d + column;
              for (int64_t l = 0; l < lanes; ++l) StoreFloats(to + l * v.d, sum[l], width);
            }
          }
        }
      };
    });
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxInteract, Interact,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("self_interaction")
                                  .Attr<bool>("columns"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxInteractBack, InteractBack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .RemainingRets()
                                  .Attr<bool>("self_interaction")
                                  .Attr<bool>("columns"));
