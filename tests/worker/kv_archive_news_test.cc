#include "worker/kv_archive_news.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

v1::KvArchiveNews News(uint64_t room_bytes, uint64_t plan_version = 0, uint64_t capacity = 0,
                       uint64_t refused_by = 0) {
  v1::KvArchiveNews news;
  news.set_room_bytes(room_bytes);
  news.set_plan_version(plan_version);
  news.set_capacity(capacity);
  news.set_refused_by(refused_by);
  return news;
}

TEST(KvArchiveNewsTest, RoomCountsByTheEighth) {
  EXPECT_FALSE(IsWorthTelling(News(800), News(800)));
  EXPECT_FALSE(IsWorthTelling(News(800), News(701)));
  EXPECT_TRUE(IsWorthTelling(News(800), News(700)));
  EXPECT_FALSE(IsWorthTelling(News(701), News(800)));
  EXPECT_TRUE(IsWorthTelling(News(700), News(800)));
  EXPECT_FALSE(IsWorthTelling(News(0), News(0)));
  EXPECT_TRUE(IsWorthTelling(News(0), News(1)));
}

TEST(KvArchiveNewsTest, LessCapacityIsToldAtOnceAndMoreByTheEighth) {
  EXPECT_FALSE(IsWorthTelling(News(800, 3, 80), News(790, 3, 80)));
  EXPECT_TRUE(IsWorthTelling(News(800, 3, 80), News(790, 3, 79)));
  EXPECT_FALSE(IsWorthTelling(News(800, 3, 80), News(810, 3, 81)));
  EXPECT_TRUE(IsWorthTelling(News(800, 3, 70), News(810, 3, 80)));
}

TEST(KvArchiveNewsTest, SoAreAnotherPlanAndARefusal) {
  EXPECT_TRUE(IsWorthTelling(News(800, 3, 80), News(800, 4, 80)));
  EXPECT_FALSE(IsWorthTelling(News(800, 3, 80), News(800))) << "there is no stage any more";
  EXPECT_TRUE(IsWorthTelling(News(800, 3, 80), News(800, 3, 80, 7)));
  EXPECT_TRUE(IsWorthTelling(News(800, 3, 80, 7), News(800, 3, 80)));
}

}  // namespace
}  // namespace caravan
