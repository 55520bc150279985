#include "cluster/call_guard.h"

#include <optional>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "caravan/v1/batches.pb.h"
#include "caravan/v1/cluster.pb.h"
#include "caravan/v1/enrolment.pb.h"
#include "caravan/v1/jobs.pb.h"
#include "caravan/v1/kv_blocks.pb.h"
#include "caravan/v1/model_files.pb.h"
#include "caravan/v1/pipeline.pb.h"
#include "caravan/v1/probe.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// The paths of all calls that the protocol has.
std::set<std::string> AllCalls() {
  std::set<std::string> calls;
  for (const google::protobuf::FileDescriptor* file :
       {v1::BatchHeader::descriptor()->file(), v1::Registration::descriptor()->file(),
        v1::EnrolRequest::descriptor()->file(), v1::SubmitRequest::descriptor()->file(),
        v1::ReadTensorRequest::descriptor()->file(), v1::EchoRequest::descriptor()->file(),
        v1::Step::descriptor()->file(), v1::KvBlockPart::descriptor()->file()}) {
    for (int i = 0; i < file->service_count(); ++i) {
      for (int k = 0; k < file->service(i)->method_count(); ++k) {
        calls.insert(absl::StrCat("/", file->service(i)->full_name(), "/",
                                  file->service(i)->method(k)->name()));
      }
    }
  }
  return calls;
}

std::set<std::string> Allowed(const std::optional<Identity>& caller) {
  std::set<std::string> allowed;
  for (const std::string& call : AllCalls()) {
    if (CheckCall(call, caller).ok()) allowed.insert(call);
  }
  return allowed;
}

const std::set<std::string> kEnrolment = {"/caravan.v1.Enrolment/GetAuthority",
                                          "/caravan.v1.Enrolment/Enrol"};

std::set<std::string> With(std::set<std::string> calls) {
  calls.insert(kEnrolment.begin(), kEnrolment.end());
  return calls;
}

TEST(CallGuardTest, WithoutACertificateOneCanOnlyAskForOne) {
  EXPECT_EQ(Allowed(std::nullopt), kEnrolment);
  const absl::Status status = CheckCall("/caravan.v1.Jobs/Submit", std::nullopt);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(status.message(), HasSubstr("give --certs DIRECTORY"));
}

TEST(CallGuardTest, AWorkerJoinsReadsWeightsAndPassesStepsOn) {
  EXPECT_EQ(Allowed(Identity{Role::kWorker, "a"}),
            With({"/caravan.v1.Cluster/Attend", "/caravan.v1.Cluster/GetStatus",
                  "/caravan.v1.KvBlocks/OfferKvBlocks", "/caravan.v1.KvBlocks/PutKvBlock",
                  "/caravan.v1.KvBlocks/ListKvBlocks", "/caravan.v1.KvBlocks/GetKvBlocks",
                  "/caravan.v1.ModelFiles/ListTensors", "/caravan.v1.ModelFiles/ReadTensor",
                  "/caravan.v1.PackFiles/ListFiles", "/caravan.v1.PackFiles/ReadFile",
                  "/caravan.v1.Pipeline/Flow", "/caravan.v1.Probe/Echo",
                  "/caravan.v1.Probe/Receive", "/caravan.v1.Probe/Send"}));
}

TEST(CallGuardTest, AClientSubmits) {
  std::set<std::string> wanted =
      With({"/caravan.v1.Cluster/GetStatus", "/caravan.v1.Cluster/Drain", "/caravan.v1.Probe/Echo",
            "/caravan.v1.Probe/Receive", "/caravan.v1.Probe/Send"});
  for (const std::string& call : AllCalls()) {
    if (call.find(".Jobs/") != std::string::npos || call.find(".Batches/") != std::string::npos) {
      wanted.insert(call);
    }
  }
  EXPECT_EQ(Allowed(Identity{Role::kClient, "a"}), wanted);
  wanted.insert("/caravan.v1.Pipeline/Flow");
  EXPECT_EQ(Allowed(Identity{Role::kCoordinator, "a"}), wanted);
}

TEST(CallGuardTest, WhatNobodyKnowsNobodyMayCall) {
  for (const char* call : {"", "/", "/caravan.v1.Jobs", "/caravan.v2.Jobs/Submit",
                           "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}) {
    EXPECT_EQ(CheckCall(call, Identity{Role::kCoordinator, "a"}).code(),
              absl::StatusCode::kPermissionDenied)
        << call;
  }
}

}  // namespace
}  // namespace caravan
