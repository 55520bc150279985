#include "cluster/identity.h"

#include <string>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(IdentityTest, GoesThroughItsUri) {
  for (const Role role : {Role::kCoordinator, Role::kWorker, Role::kClient}) {
    const Identity identity = {role, "Box-3.rack_1"};
    const absl::StatusOr<Identity> again = ParseIdentityUri(ToUri(identity));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, identity);
    EXPECT_EQ(*ParseIdentity(ToString(identity)), identity);
  }
  EXPECT_EQ(ToUri({Role::kWorker, "a"}), "caravan://cluster/worker/a");
}

TEST(IdentityTest, RefusesOtherUris) {
  for (const std::string& uri :
       {std::string(), std::string("caravan://cluster/worker"),
        std::string("caravan://cluster/worker/"), std::string("caravan://cluster/king/a"),
        std::string("caravan://other/worker/a"), std::string("spiffe://cluster/worker/a"),
        std::string("caravan://cluster/worker/a/b"),
        std::string("caravan://cluster/worker/a\0b", 28),
        std::string("caravan://cluster/Worker/a")}) {
    EXPECT_EQ(ParseIdentityUri(uri).status().code(), absl::StatusCode::kInvalidArgument) << uri;
  }
}

TEST(IdentityTest, NamesAreShortAndPlain) {
  EXPECT_TRUE(CheckIdentityName(std::string(63, 'a')).ok());
  for (const std::string& name : {std::string(), std::string(64, 'a'), std::string("-a"),
                                  std::string("a b"), std::string("a/b"), std::string("a,URI:b"),
                                  std::string("bo\xc3\xaete"), std::string(".")}) {
    EXPECT_FALSE(CheckIdentityName(name).ok()) << name;
  }
}

}  // namespace
}  // namespace caravan
