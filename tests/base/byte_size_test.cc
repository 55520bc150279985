#include "base/byte_size.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(ByteSizeTest, ParsesWhatPeopleWrite) {
  EXPECT_EQ(*ParseByteSize("4096"), 4096);
  EXPECT_EQ(*ParseByteSize("24GiB"), int64_t{24} << 30);
  EXPECT_EQ(*ParseByteSize(" 1.5 GB "), 1500000000);
  EXPECT_EQ(*ParseByteSize("512kib"), 512 * 1024);
}

TEST(ByteSizeTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "GiB", "-1", "1 XB", "1.2.3", "9999999999TiB", "nan", "1e9"}) {
    EXPECT_EQ(ParseByteSize(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ByteSizeTest, FormatsThreeDigits) {
  EXPECT_EQ(FormatByteSize(640), "640 B");
  EXPECT_EQ(FormatByteSize(1536), "1.50 KiB");
  EXPECT_EQ(FormatByteSize((int64_t{11} << 30) + (int64_t{205} << 20)), "11.2 GiB");
}

}  // namespace
}  // namespace caravan
