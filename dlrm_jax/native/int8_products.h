// Products of int8 vectors: a block of 32 items with up to 8 queries at a time.
//
// The numbers of a block lie so that a vector register has four of each of 16 items: [groups of four
// numbers][32 items][4]. Sums are 32-bit integers, the same on every processor.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

constexpr int kBlock = 32;       // items
constexpr int kMostQueries = 8;  // whose sums with a block fit in the registers of AVX-512

// Queries that are multiplied with the same blocks: their numbers as [groups][kQueries][4].
struct QueryGroup {
  const int8_t* numbers;
  int32_t sums[kMostQueries];  // of the numbers of each query
};

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

// vpdpbusd multiplies unsigned by signed bytes: 128 is added to the items' numbers, and 128 times the
// sum of the query's is taken off.
template <int kQueries>
void Products(const int8_t* block, int64_t groups, const QueryGroup& queries,
              int32_t (*products)[kBlock]) {
  __m512i sums[kQueries][2];
  for (int q = 0; q < kQueries; ++q)
    sums[q][0] = sums[q][1] = _mm512_set1_epi32(-128 * queries.sums[q]);
  const __m512i offset = _mm512_set1_epi8(-128);
  const int8_t* of_queries = queries.numbers;
  for (int64_t group = 0; group < groups; ++group, block += 4 * kBlock) {
    const __m512i low = _mm512_xor_si512(_mm512_loadu_si512(block), offset);
    const __m512i high = _mm512_xor_si512(_mm512_loadu_si512(block + 64), offset);
    for (int q = 0; q < kQueries; ++q, of_queries += 4) {
      int32_t four;
      std::memcpy(&four, of_queries, 4);
      const __m512i query = _mm512_set1_epi32(four);
      sums[q][0] = _mm512_dpbusd_epi32(sums[q][0], low, query);
      sums[q][1] = _mm512_dpbusd_epi32(sums[q][1], high, query);
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    _mm512_storeu_si512(products[q], sums[q][0]);
    _mm512_storeu_si512(products[q] + 16, sums[q][1]);
  }
}

#elif defined(__AVX2__)

template <int kQueries>
void Products(const int8_t* block, int64_t groups, const QueryGroup& queries,
              int32_t (*products)[kBlock]) {
  for (int q = 0; q < kQueries; ++q) {
    __m256i sums[8] = {};  // two of each of 4 items
    for (int64_t group = 0; group < groups; ++group) {
      int32_t four;
      std::memcpy(&four, queries.numbers + 4 * (group * kQueries + q), 4);
      const __m256i query = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
      const int8_t* const from = block + group * 4 * kBlock;
      for (int i = 0; i < 8; ++i) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
        sums[i] =
            _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), query));
      }
    }
    for (int i = 0; i < 4; ++i) {  // hadd works within halves of 128 bits
      const __m256i pairs = _mm256_hadd_epi32(sums[2 * i], sums[2 * i + 1]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(products[q] + 8 * i),
                          _mm256_permute4x64_epi64(pairs, 0xd8));
    }
  }
}

#else

template <int kQueries>
void Products(const int8_t* block, int64_t groups, const QueryGroup& queries,
              int32_t (*products)[kBlock]) {
  for (int q = 0; q < kQueries; ++q) {
    int32_t sums[kBlock] = {};
    for (int64_t group = 0; group < groups; ++group) {
      const int8_t* const query = queries.numbers + 4 * (group * kQueries + q);
      const int8_t* const from = block + group * 4 * kBlock;
      for (int i = 0; i < kBlock; ++i)
        for (int j = 0; j < 4; ++j) sums[i] += from[4 * i + j] * query[j];
    }
    std::memcpy(products[q], sums, sizeof(sums));
  }
}

#endif

// Which of a block's scores, products times the items' scales, reach a threshold: bit i for item i.
inline uint32_t Reaching(const int32_t* products, const float* scales, float threshold,
                         float* scores) {
#ifdef __AVX512F__
  uint32_t found = 0;
  const __m512 least = _mm512_set1_ps(threshold);
  for (int half = 0; half < 2; ++half) {
    const __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(products + 16 * half)),
                                       _mm512_loadu_ps(scales + 16 * half));
    _mm512_storeu_ps(scores + 16 * half, score);
    const uint32_t reached = _mm512_cmp_ps_mask(score, least, _CMP_GE_OQ);
    found |= reached << 16 * half;
  }
  return found;
#else
  int any = 0;
  for (int i = 0; i < kBlock; ++i) {
    scores[i] = static_cast<float>(products[i]) * scales[i];
    any |= scores[i] >= threshold;
  }
  uint32_t found = 0;
  for (int i = 0; any && i < kBlock; ++i) found |= uint32_t{scores[i] >= threshold} << i;
  return found;
#endif
}
