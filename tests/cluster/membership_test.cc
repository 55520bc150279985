#include "cluster/membership.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/address.h"
#include "cluster/box_json.h"
#include "cluster/known_boxes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::Registration Worker(const std::string& name, const std::string& address = "") {
  v1::Registration registration;
  registration.set_name(name);
  registration.set_address(address.empty() ? absl::StrCat(name, ":7000") : address);
  registration.set_device("cpu");
  registration.set_memory_budget_bytes(1 << 30);
  registration.set_num_threads(4);
  return registration;
}

std::vector<std::string> Names(const std::vector<Member>& members) {
  std::vector<std::string> names;
  for (const Member& member : members) names.push_back(member.registration.name());
  return names;
}

class MembershipTest : public ::testing::Test {
 protected:
  SimulatedClock clock_;
  Membership membership_{clock_, {.heartbeat_timeout = absl::Seconds(10)}};
};

TEST_F(MembershipTest, KeepsMembersInOrderOfJoining) {
  clock_.Advance(absl::Seconds(3));
  const WorkerId z = *membership_.Join(11, Worker("z"));
  clock_.Advance(absl::Seconds(1));
  const WorkerId a = *membership_.Join(12, Worker("a"));
  EXPECT_EQ(Number(z), 1u);
  EXPECT_EQ(Number(a), 2u);
  EXPECT_THAT(Names(membership_.Members()), ElementsAre("z", "a"));
  const std::optional<Member> member = membership_.Find(a);
  ASSERT_TRUE(member.has_value());
  EXPECT_EQ(member->id, a);
  EXPECT_EQ(member->incarnation, 12u);
  EXPECT_EQ(member->joined_at, absl::Seconds(4));
  EXPECT_EQ(member->last_heard, absl::Seconds(4));
  EXPECT_FALSE(membership_.Find(WorkerId{3}).has_value());
}

TEST_F(MembershipTest, AnAddressIsTakenOverByItsIdentityOnly) {
  const WorkerId a = *membership_.Join(11, Worker("a"), "worker/box-a");
  v1::Registration same = Worker("b");
  same.set_address(Worker("a").address());
  EXPECT_EQ(membership_.Join(12, same, "worker/box-b").status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(membership_.Join(12, same).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(membership_.Find(a).has_value());
  EXPECT_TRUE(membership_.Join(12, same, "worker/box-a").ok());
  EXPECT_FALSE(membership_.Find(a).has_value());
}

TEST_F(MembershipTest, LosesAWorkerThatIsSilentForLongerThanTheTimeout) {
  const WorkerId a = *membership_.Join(1, Worker("a"));
  const WorkerId b = *membership_.Join(2, Worker("b"));
  clock_.Advance(absl::Seconds(6));
  EXPECT_TRUE(membership_.Heard(b, 2).ok());
  clock_.Advance(absl::Seconds(4));
  EXPECT_THAT(membership_.Expire(), IsEmpty());  // a was silent for just the timeout
  clock_.Advance(absl::Nanoseconds(1));
  EXPECT_THAT(Names(membership_.Expire()), ElementsAre("a"));
  EXPECT_THAT(membership_.Expire(), IsEmpty());
  EXPECT_THAT(Names(membership_.Members()), ElementsAre("b"));
  EXPECT_EQ(membership_.Heard(a, 1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(membership_.Find(b)->last_heard, absl::Seconds(6));
}

TEST_F(MembershipTest, RejectsAReportFromAnotherIncarnation) {
  const WorkerId a = *membership_.Join(1, Worker("a"));
  EXPECT_EQ(membership_.Heard(a, 2).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(membership_.Heard(WorkerId{9}, 1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(membership_.Leave(a, 2).code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Names(membership_.Members()), ElementsAre("a"));
}

TEST_F(MembershipTest, ForgetsAWorkerThatLeaves) {
  const WorkerId a = *membership_.Join(1, Worker("a"));
  EXPECT_TRUE(membership_.Leave(a, 1).ok());
  EXPECT_THAT(membership_.Members(), IsEmpty());
  EXPECT_THAT(membership_.Expire(), IsEmpty());  // it is not lost
  EXPECT_EQ(membership_.Leave(a, 1).code(), absl::StatusCode::kAborted);
}

TEST_F(MembershipTest, RefusesAnIncarnationThatIsAMember) {
  ASSERT_TRUE(membership_.Join(1, Worker("a")).ok());
  EXPECT_EQ(membership_.Join(1, Worker("b")).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(membership_.Join(1, Worker("a")).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Names(membership_.Members()), ElementsAre("a"));
}

TEST_F(MembershipTest, ANewLifeAtTheSameAddressReplacesTheOld) {
  const WorkerId old_life = *membership_.Join(1, Worker("a"));
  ASSERT_TRUE(membership_.Join(2, Worker("b")).ok());
  const WorkerId new_life = *membership_.Join(3, Worker("a2", "a:7000"));
  EXPECT_NE(old_life, new_life);
  EXPECT_THAT(Names(membership_.Members()), ElementsAre("b", "a2"));
  EXPECT_EQ(membership_.Heard(old_life, 1).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(membership_.Heard(new_life, 3).ok());
  EXPECT_THAT(Names(membership_.Expire()), ElementsAre("a"));
  EXPECT_THAT(membership_.Expire(), IsEmpty());
}

TEST_F(MembershipTest, NamesTheFieldThatCannotBe) {
  struct Case {
    std::string field;
    void (*spoil)(v1::Registration&);
  };
  const Case cases[] = {
      {"name", [](v1::Registration& r) { r.clear_name(); }},
      {"name", [](v1::Registration& r) { r.set_name(std::string(257, 'x')); }},
      {"name", [](v1::Registration& r) { r.set_name("two\nlines"); }},
      {"name", [](v1::Registration& r) { r.set_name("\x1b[31mred"); }},
      {"name", [](v1::Registration& r) { r.set_name("c1 \xc2\x9b control"); }},
      {"address", [](v1::Registration& r) { r.clear_address(); }},
      {"address", [](v1::Registration& r) { r.set_address("host"); }},
      {"device", [](v1::Registration& r) { r.clear_device(); }},
      {"memory_budget_bytes", [](v1::Registration& r) { r.set_memory_budget_bytes(0); }},
      {"memory_budget_bytes", [](v1::Registration& r) { r.set_memory_budget_bytes(~0ull); }},
      {"process_bytes", [](v1::Registration& r) { r.set_process_bytes(~0ull); }},
      {"num_threads", [](v1::Registration& r) { r.set_num_threads(0); }},
      {"num_threads", [](v1::Registration& r) { r.set_num_threads(1000000); }},
      {"kv_dtype", [](v1::Registration& r) { r.set_kv_dtype("F17"); }},
      {"kv_dtype", [](v1::Registration& r) { r.set_kv_dtype("Q4_K"); }},
  };
  for (const Case& c : cases) {
    v1::Registration registration = Worker("a");
    c.spoil(registration);
    const absl::Status status = membership_.Join(1, registration).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << registration.DebugString();
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("registration: ", c.field)));
  }
  EXPECT_EQ(membership_.Join(0, Worker("a")).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(membership_.Members(), IsEmpty());
}

nlohmann::json BoxText() {
  Box box = *FindBox("3060");
  box.network = *FindPart<Box::Network>("10gbe");
  nlohmann::json json = BoxToJson(box);
  for (nlohmann::json& part : json) {
    if (part.is_object()) part.erase("sources");
  }
  return json;
}

TEST_F(MembershipTest, ABoxIsTakenAsItIsSaid) {
  v1::Registration registration = Worker("a");
  EXPECT_EQ(BoxOf(registration), std::nullopt);
  nlohmann::json text = BoxText();
  registration.set_box(text.dump());
  EXPECT_TRUE(membership_.Join(1, registration).ok());
  EXPECT_EQ(BoxOf(registration)->card.count, 1);
  EXPECT_EQ(BoxOf(registration)->network.bytes, FindPart<Box::Network>("10gbe")->bytes);
  text.erase("network");
  registration.set_box(text.dump());
  EXPECT_EQ(BoxOf(registration)->network.bytes, FindPart<Box::Network>("1gbe")->bytes);
}

TEST_F(MembershipTest, ABoxThatCannotBeIsRefusedByItsField) {
  const auto refusal = [&](const std::string& box, bool on_card = false) {
    v1::Registration registration = Worker("a");
    registration.set_box(box);
    registration.set_on_card(on_card);
    const absl::Status status = membership_.Join(1, registration).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << box;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal("{"), HasSubstr("registration: box: not valid JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("registration: box"));
  EXPECT_THAT(refusal(std::string(5000, ' ')), HasSubstr("box has 5000 bytes, and 4096 is"));
  nlohmann::json text = BoxText();
  text["memory"]["read_bytes_per_second"] = -1;
  EXPECT_THAT(refusal(text.dump()), HasSubstr("\"read_bytes_per_second\""));
  text = BoxText();
  text["cpu"]["multiply_adds_per_second"] = 1e30;
  EXPECT_THAT(refusal(text.dump()), HasSubstr("\"multiply_adds_per_second\""));
  text = BoxText();
  text["disk"]["spindles"] = 3;
  EXPECT_THAT(refusal(text.dump()), HasSubstr("\"spindles\""));
  text = BoxText();
  text.erase("card");
  EXPECT_THAT(refusal(text.dump(), /*on_card=*/true),
              HasSubstr("box has no card, and the worker computes on one"));
  EXPECT_THAT(membership_.Members(), IsEmpty());
}

TEST_F(MembershipTest, AKvFormatThatIsNotNamedIsF32) {
  v1::Registration registration = Worker("a");
  EXPECT_EQ(KvDTypeOf(registration), DType::kF32);
  registration.set_kv_dtype("Q8_0");
  EXPECT_TRUE(membership_.Join(1, registration).ok());
  EXPECT_EQ(KvDTypeOf(registration), DType::kQ8_0);
}

TEST_F(MembershipTest, TakesNamesInAnyScript) {
  EXPECT_TRUE(membership_.Join(1, Worker("b\u00f6x \u7bb1\u5b50", "a:1")).ok());
  EXPECT_TRUE(membership_.Join(2, Worker(std::string(256, 'x'), "a:2")).ok());
}

TEST(CheckAddressTest, TakesHostAndPortOnly) {
  for (const char* good :
       {"a:1", "box-3.lan:65535", "127.0.0.1:7000", "[::1]:7000", "[fe80::1%eth0]:80"}) {
    EXPECT_TRUE(CheckAddress(good).ok()) << good;
  }
  for (const char* bad :
       {"", "a", ":1", "a:", "a:0", "a:65536", "a:-1", "a:+1", "a: 1", "a:1x", "a:99999999999",
        "::1:7000", "[]:1", "[::1]", "a b:1", "unix:/tmp/x:1", "http://a:1", "a\n:1"}) {
    EXPECT_EQ(CheckAddress(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace caravan
