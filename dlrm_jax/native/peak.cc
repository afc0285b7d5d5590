// The processor's peak of products: a loop whose operands stay in the first cache.

#include "packing.h"
#include "threads.h"

namespace {

using namespace packing;

// 24 KiB: whole blocks of 12 rows, or of a tile's, and a panel.
constexpr int64_t kRows = 96;
constexpr int64_t kDepth = 48;  // words

template <typename Type>
double MultiplyAgain(int64_t times, int64_t threads) {
  OnThreads(threads, threads, [&](int64_t) {
    const Tiles tiles;
    const Scratch left(kRows * kDepth), right(kDepth * kPanel);
    std::memset(left.get(), 0, 4 * kRows * kDepth);
    std::memset(right.get(), 0, 4 * kDepth * kPanel);
    for (int64_t i = 0; i < times; ++i)
      Multiply<Type>(tiles, {left.get(), kDepth, 1}, kRows, Panels(right.get(), kDepth), kDepth, kPanel,
                     [](int64_t, int64_t, int64_t, const auto (*c)[kPanel]) {
                       __asm__ volatile("" ::"r"(c) : "memory");  // all sums are read, so to say
                     });
  });
  return 2.0 * kRows * kPanel * kDepth * Type::kPerWord * times * threads;
}

}  // namespace

// Multiplies that often on each thread; returns the operations of all.
extern "C" double DlrmJaxMultiplyAgain(int64_t bfloat16, int64_t times, int64_t threads) {
  return bfloat16 ? MultiplyAgain<BFloat16>(times, threads) : MultiplyAgain<Float32>(times, threads);
}
