#include "coordinator/http/query.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(QueryTest, DecodesNamesAndValues) {
  EXPECT_THAT(*ParseQuery(""), IsEmpty());
  EXPECT_THAT(*ParseQuery("&&"), IsEmpty());
  EXPECT_THAT(*ParseQuery("limit=2&after=file-a%2Bb+c&x&y=&%7a=1=2"),
              ElementsAre(Pair("after", "file-a+b c"), Pair("limit", "2"), Pair("x", ""),
                          Pair("y", ""), Pair("z", "1=2")));
}

TEST(QueryTest, RefusesWhatIsTwiceThereOrMalformed) {
  for (const char* bad : {"a=1&a=2", "a&a", "a=%", "%zz=1", "a=%4"}) {
    EXPECT_EQ(ParseQuery(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace caravan
