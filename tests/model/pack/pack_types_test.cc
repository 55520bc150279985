#include "model/pack/pack_types.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(PackTypes, BitsNameOneFormat) {
  for (const auto& [bits, dtype] : {std::pair{2.6, DType::kQ2_K},
                                    {2.625, DType::kQ2_K},
                                    {3.4, DType::kQ3_K},
                                    {4.5, DType::kQ4_K},
                                    {5.5, DType::kQ5_K},
                                    {6.6, DType::kQ6_K},
                                    {8.0, DType::kF8E4M3},
                                    {8.5, DType::kQ8_0},
                                    {16.0, DType::kBF16}}) {
    const auto types = PackTypesOfBits(bits);
    ASSERT_TRUE(types.ok()) << types.status();
    EXPECT_EQ(types->experts, dtype) << bits;
    EXPECT_EQ(types->dense, dtype) << bits;
  }
}

TEST(PackTypes, OtherBitsAreRefusedWithThoseThatThereAre) {
  const auto types = PackTypesOfBits(4);
  EXPECT_EQ(types.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(types.status().message(),
            "no format has 4 bits a weight; there are 2.6 (Q2_K), 3.4 (Q3_K), 4.5 (Q4_K), 5.5 "
            "(Q5_K), 6.6 (Q6_K), 8 (F8_E4M3), 8.5 (Q8_0), 16 (BF16), 32 (F32)");
}

}  // namespace
}  // namespace caravan
