#include "worker/nccl/nccl_library.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/nccl/nccl_version.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(NcclVersionTest, IsSaidAsNcclSaysIt) {
  EXPECT_EQ(NcclVersionText(22809), "2.28.9");
  EXPECT_EQ(NcclVersionText(21400), "2.14.0");
}

#if CARAVAN_HAS_NCCL

std::string Seeming(int version) { return absl::StrCat(SEEMING_NCCL_DIR "/nccl_", version, ".so"); }

TEST(NcclLibraryTest, OneThatIsNotThereIsNamedByTheLinker) {
  const absl::Status status = NcclLibrary::Load("/nowhere/libnccl.so.2").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("/nowhere/libnccl.so.2"), HasSubstr("No such file")));
}

TEST(NcclLibraryTest, AnotherLibraryIsNotNccl) {
  const absl::Status status = NcclLibrary::Load("libm.so.6").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("libm.so.6"), HasSubstr("no ncclGetVersion")));
}

TEST(NcclLibraryTest, AnOldOneIsRefusedWithBothVersions) {
  const absl::Status status = NcclLibrary::Load(Seeming(21399)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("2.13.99"), HasSubstr("2.14.0 is the oldest")));
}

TEST(NcclLibraryTest, AnotherMajorVersionIsRefusedWithBothVersions) {
  const absl::Status status = NcclLibrary::Load(Seeming(30101)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("3.1.1"), HasSubstr("version 2 (2.")));
}

TEST(NcclLibraryTest, WhatAYoungOneLacksIsNamed) {
  const absl::Status status = NcclLibrary::Load(Seeming(29900)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("no ncclGetUniqueId"));
}

TEST(NcclLibraryTest, TheRealOneLoadsWithoutACard) {
  const auto library = NcclLibrary::Load();
  if (library.status().code() == absl::StatusCode::kUnavailable) {
    GTEST_SKIP() << library.status();
  }
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_GE((*library)->version(), kOldestNcclVersion);
}

#else

TEST(NcclLibraryTest, ABuildWithoutItSaysSo) {
  const absl::Status status = NcclLibrary::Load().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(status), HasSubstr("this build has no NCCL"));
}

#endif

}  // namespace
}  // namespace caravan
