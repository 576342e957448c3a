package service_test

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// apiFiles are the files of the API that have services, so that a table over all RPCs notices a new one.
func apiFiles() []protoreflect.FileDescriptor {
	return []protoreflect.FileDescriptor{
		setpointv1.File_setpoint_v1_session_proto,
		setpointv1.File_setpoint_v1_variable_proto,
		setpointv1.File_setpoint_v1_history_proto,
		setpointv1.File_setpoint_v1_dependency_proto,
		setpointv1.File_setpoint_v1_optimization_proto,
		setpointv1.File_setpoint_v1_access_proto,
		setpointv1.File_setpoint_v1_token_proto,
	}
}

func countMethods() int {
	n := 0
	for _, file := range apiFiles() {
		for i := range file.Services().Len() {
			n += file.Services().Get(i).Methods().Len()
		}
	}
	return n
}
