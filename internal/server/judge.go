package server

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// judge is told of every call whose caller is known, when it has ended.
type judge interface {
	// Judged is told the answer of a call that has one, else nil; of a stream, req is the first message that came, nil for none.
	Judged(ctx context.Context, method string, req, answer any, err error, took time.Duration)
}

// judged tells a judge of the calls of the API.
type judged struct{ judge judge }

func isOfTheAPI(method string) bool { return strings.HasPrefix(method, "/setpoint.v1.") }

func (j judged) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := time.Now()
	answer, err := next(ctx, req)
	if err != nil {
		answer = nil
	}
	if isOfTheAPI(info.FullMethod) {
		j.judge.Judged(ctx, info.FullMethod, req, answer, err, time.Since(start))
	}
	return answer, err
}

func (j judged) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	start := time.Now()
	kept := &firstKept{ServerStream: stream}
	err := next(server, kept)
	if isOfTheAPI(info.FullMethod) {
		j.judge.Judged(stream.Context(), info.FullMethod, kept.first, nil, err, time.Since(start))
	}
	return err
}

// firstKept is a stream that keeps the first message which its handler receives: of a streaming call, the request.
type firstKept struct {
	grpc.ServerStream
	first any
}

// RecvMsg receives the next message of the client's.
func (s *firstKept) RecvMsg(message any) error {
	err := s.ServerStream.RecvMsg(message)
	if err == nil && s.first == nil {
		s.first = message
	}
	return err
}
